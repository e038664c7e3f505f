"""Every module of the package is compared with a twin in a test of its gradients, or has none to compare."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
import torch
from torch import nn

import snnet

TESTS = Path(__file__).parents[1]
NET, PARTS, GROWN = 'net/test_gradients.py', 'net/test_gradients_of_parts.py', 'reparam/test_gradients.py'
NO_GRADIENT = ''
WHOLE = f'{PARTS}::test_an_anchor_has_the_gradients_of_its_network'
BRANCH = f'{GROWN}::test_every_branch_of_a_convolution_has_the_gradient_of_its_equation'

CONVOLUTION = f'{GROWN}::test_every_grown_convolution_has_the_gradient_of_its_equation'
SAME = f'{GROWN}::test_padding_that_follows_the_input_has_the_gradient_of_its_equation'
STITCH_BRANCH = f'{GROWN}::test_every_branch_of_a_stitch_layer_has_the_gradient_of_its_equation'
REASSEMBLED = f'{PARTS}::test_a_reassembled_network_has_the_gradient_of_its_equation'

COMPARED = {
    'anchors.adapters.levit.LevitAnchor': WHOLE,
    'anchors.adapters.resnet.ResNetAnchor': WHOLE,
    'anchors.adapters.swin.SwinAnchor': WHOLE,
    'anchors.adapters.vit.ViTAnchor': WHOLE,
    'anchors.anchor.Anchor': WHOLE,
    'anchors.cut.Absent': NO_GRADIENT,  # it refuses to run
    'anchors.flops._Part': NO_GRADIENT,  # it is only counted
    'anchors.flops._Parts': NO_GRADIENT,
    'anchors.network_line.NetworkLine': NO_GRADIENT,  # an anchor runs it
    'anchors.normalization.Renormalize': f'{PARTS}::test_a_change_of_normalization_has_the_gradient_of_its_equation',
    'anchors.tracing.segment.Segment': WHOLE,
    'anchors.tracing.traced_anchor.TracedAnchor': WHOLE,
    'net.compile_blocks.TensorDropPath': f'{NET}::test_drop_path_has_the_gradient_of_timms',
    'net.extract.ExtractedStitch': f'{PARTS}::test_an_extracted_stitch_has_the_gradients_of_the_net',
    'net.joined_anchors.JoinedAnchors': f'{PARTS}::test_a_stitch_has_the_gradients_of_its_legs',
    'net.measured_net.MeasuredNet': NO_GRADIENT,  # JoinedAnchors computes
    'net.stitchable_net.StitchableNet': NO_GRADIENT,  # as above
    'net.timm_methods.TimmMethods': NO_GRADIENT,  # anchors and stitch layers compute
    'reassembly.block_flops._Module': NO_GRADIENT,  # it is only counted
    'reassembly.block_flops._WithoutPrefix': NO_GRADIENT,
    'reassembly.join_layer.JoinLayer': f'{NET}::test_every_seam_has_the_gradient_of_its_equation',
    'reassembly.new_head.NewHead': f'{PARTS}::test_a_new_head_has_the_gradient_of_its_equation',
    'reassembly.new_stem.NewStem': f'{NET}::test_a_new_stem_has_the_gradient_of_its_equation',
    'reassembly.reassembled.Reassembled': REASSEMBLED,
    'reassembly.reassembled_anchor.ReassembledAnchor': REASSEMBLED,
    'reparam.block.Block': CONVOLUTION,
    'reparam.branch.Branch': BRANCH,
    'reparam.convolution_branches.IdentityBranch': BRANCH,
    'reparam.convolution_branches.PointwiseFirst': BRANCH,
    'reparam.convolution_branches.PointwiseKernel': BRANCH,
    'reparam.convolution_branches.PointwiseThenAverage': BRANCH,
    'reparam.convolution_branches.PointwiseThenKernel': BRANCH,
    'reparam.convolution_branches.ColumnKernel': BRANCH,
    'reparam.convolution_branches.RowKernel': BRANCH,
    'reparam.rep_layers.RepConv2d': CONVOLUTION,
    'reparam.rep_layers.RepConv2dSame': SAME,
    'reparam.rep_layers.RepStitchLayer': f'{GROWN}::test_every_grown_stitch_layer_has_the_gradient_of_its_equation',
    'reparam.stitch_branches.LowRankBranch': STITCH_BRANCH,
    'reparam.stitch_branches.GroupedBranch': STITCH_BRANCH,
    'stitching.stitch_layer.StitchLayer': f'{NET}::test_a_stitch_layer_has_the_gradient_of_a_matrix',
    'training.anchor_teachers.AnchorTeachers': f'{NET}::test_the_teachers_of_anchors_have_the_gradient_of_a_divergence',
    'training.loss.BinaryLoss': f'{PARTS}::test_the_binary_loss_has_the_gradient_of_its_equation',
    'training.low_rank.LowRankUpdate': f'{PARTS}::test_a_low_rank_update_has_the_gradient_of_its_equation',
    'training.distillation.DistillationLoss': f'{NET}::test_distillation_has_the_gradient_of_its_equation',
    'training.teacher.Teacher': NO_GRADIENT,  # it is frozen
    'utils.safe_batch_norm.SafeBatchNorm2d': f'{GROWN}::test_a_norm_is_safe_for_every_way_to_store_input_and_gradient',
}
"""The test that compares the gradients of each module with those of a twin; empty where it has none."""


def test_every_module_is_in_the_table():
    found = set()
    for module in pkgutil.walk_packages(snnet.__path__, 'snnet.'):
        for name, value in vars(importlib.import_module(module.name)).items():
            own = isinstance(value, type) and value.__module__ == module.name
            if own and issubclass(value, (nn.Module, torch.autograd.Function)):
                found.add(f'{module.name.removeprefix("snnet.")}.{name}')
    assert found == COMPARED.keys()


@pytest.mark.parametrize('test', sorted({test for test in COMPARED.values() if test}))
def test_every_test_of_the_table_exists(test):
    file, _, name = test.partition('::')
    assert f'\ndef {name}(' in (TESTS / file).read_text()
