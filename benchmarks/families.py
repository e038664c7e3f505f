"""Which families of timm's networks stitch: pairs and triples of one design, with random weights.

    python benchmarks/families.py [--out docs/results/families.md] [--real] [NAMES ...]

Each is built by `snnet.create_stitchable_net(names, pretrained=False)` in a separate process with limits on time and
memory, with `num_classes=10` where timm gives the networks no classifier or different ones. Then its anchors and five
stitches run. Networks have no numbers (torch's meta device) unless one needs them or --real is given: what runs and
which shapes come out is the same, but FLOPs cannot be traced, so networks are ordered by parameters. Prints a table in
Markdown: stitches and stitch layers, or the refusal.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import time
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

import snnet
from snnet.anchors.flops import PartFlops, part_flops
from snnet.utils.log import set_up_logging
from snnet.utils.progress import Progress

FAMILIES = """
deit_tiny,deit_small,deit_base
deit3_small_patch16_224,deit3_base_patch16_224
vit_tiny_patch16_224,vit_small_patch16_224,vit_base_patch16_224
vit_small_patch14_dinov2,vit_base_patch14_dinov2
vit_small_patch16_dinov3,vit_base_patch16_dinov3
vit_large_patch14_clip_224,vit_huge_patch14_clip_224
vit_base_patch16_siglip_224,vit_base_patch16_siglip_256
vit_base_patch32_clip_224,vit_base_patch32_clip_256
vit_medium_patch16_reg4_gap_256,vit_betwixt_patch16_reg4_gap_256
vit_relpos_small_patch16_224,vit_relpos_medium_patch16_224
naflexvit_base_patch16_gap,naflexvit_so150m2_patch16_reg1_gap
eva02_tiny_patch14_224,eva02_small_patch14_224
beit_base_patch16_224,beit_large_patch16_224
beitv2_base_patch16_224,beitv2_large_patch16_224
cait_xxs24_224,cait_xs24_384
xcit_nano_12_p16_224,xcit_tiny_12_p16_224
convit_tiny,convit_small
visformer_tiny,visformer_small
mixer_s16_224,mixer_b16_224
resmlp_12_224,resmlp_24_224
gmixer_12_224,gmixer_24_224
gmlp_ti16_224,gmlp_s16_224
swin_tiny,swin_small,swin_base
swinv2_tiny_window8_256,swinv2_small_window8_256
swinv2_cr_tiny_224,swinv2_cr_small_224
twins_pcpvt_small,twins_pcpvt_base
twins_svt_small,twins_svt_base
pvt_v2_b0,pvt_v2_b1,pvt_v2_b2
nest_tiny_jx,nest_small_jx
davit_tiny,davit_small
focalnet_tiny_srf,focalnet_small_srf
gcvit_xxtiny,gcvit_xtiny
maxvit_tiny_tf_224,maxvit_small_tf_224
coatnet_0_rw_224,coatnet_1_rw_224
coat_lite_tiny,coat_lite_mini
poolformer_s12,poolformer_s24
caformer_s18,caformer_s36
convformer_s18,convformer_s36
edgenext_xx_small,edgenext_x_small
efficientformer_l1,efficientformer_l3
efficientformerv2_s0,efficientformerv2_s1
mobilevit_xxs,mobilevit_xs,mobilevit_s
mobilevitv2_050,mobilevitv2_075
fastvit_t8,fastvit_t12
repvit_m0_9,repvit_m1_0
tiny_vit_5m_224,tiny_vit_11m_224
levit_192,levit_256
efficientvit_b0,efficientvit_b1
efficientvit_m0,efficientvit_m1
inception_next_tiny,inception_next_small
nextvit_small,nextvit_base
hiera_tiny_224,hiera_small_224
mambaout_femto,mambaout_kobe
resnet18,resnet50
resnet18,resnet34
seresnet50,seresnet101
nf_resnet50,nf_resnet101
dm_nfnet_f0,dm_nfnet_f1
resnetv2_50,resnetv2_101
regnety_002,regnety_004,regnety_008
regnetx_002,regnetx_004
regnetz_b16,regnetz_c16
convnext_atto,convnext_femto,convnext_pico
convnextv2_atto,convnextv2_femto
mobilenetv2_100,mobilenetv2_140
mobilenetv3_small_050,mobilenetv3_small_100
mobilenetv3_large_075,mobilenetv3_large_100
mobilenetv4_conv_small,mobilenetv4_conv_medium
mnasnet_small,mnasnet_100
efficientnet_b0,efficientnet_b1
efficientnet_b0,efficientnet_b1,efficientnet_b2
efficientnetv2_rw_t,efficientnetv2_rw_s
tf_efficientnet_lite0,tf_efficientnet_lite1,tf_efficientnet_lite2
tinynet_e,tinynet_c
mixnet_s,mixnet_m
ghostnet_050,ghostnet_100
rexnet_100,rexnet_130
hardcorenas_a,hardcorenas_d
lcnet_050,lcnet_100
dpn68,dpn92
cspresnet50,cspresnext50
cs3darknet_s,cs3darknet_m
darknet17,darknet53
repvgg_a0,repvgg_b0
mobileone_s0,mobileone_s1
vgg11,vgg13,vgg16
selecsls42,selecsls60
densenet121,densenet169
dla34,dla60
vovnet39a,vovnet57a
crossvit_9_240,crossvit_15_240
hrnet_w18_small,hrnet_w18_small_v2
resnet18,swin_tiny
"""
LIMIT = 300.0
"""Seconds for one family."""
MEMORY = 16 * 2**30
"""Bytes for one family."""
CLASSES = 10


class Row(NamedTuple):
    """A line of the table."""

    names: str
    size: str = ''
    stitches: int = 0
    layers: int = 0
    note: str = ''
    refusal: str = ''


def parameters_as_flops(anchor: snnet.Anchor) -> PartFlops:
    """Stands for the FLOPs of a network without numbers."""
    count = sum(parameter.numel() for parameter in anchor.parameters())
    return PartFlops(count, (0,) * len(anchor.line()), 0, 0)


def built(names: str, real: bool) -> tuple[snnet.StitchableNet, str]:
    """The net of a family, with a note on what it needed."""
    counted = part_flops if real else parameters_as_flops
    with nullcontext() if real else torch.device('meta'), patch('snnet.net.create.part_flops', counted):
        try:
            return snnet.create_stitchable_net(names, pretrained=False), ''
        except snnet.CannotStitch as error:
            if 'num_classes' not in str(error):
                raise
        return snnet.create_stitchable_net(names, pretrained=False, num_classes=CLASSES), f'num_classes={CLASSES}'


@torch.no_grad()
def tried(names: str, real: bool) -> Row:
    """Builds a net and runs its anchors and five stitches."""
    torch.manual_seed(0)
    net, note = built(names, real)
    net.eval()
    x = torch.randn(2, *net.input_size, device=next(net.parameters()).device)
    anchors, others = len(net.anchors), len(net.stitches) - len(net.anchors)
    ids = [*range(anchors), *sorted({anchors + others * i // 5 for i in range(5)})]
    for stitch in ids:
        logits: Tensor = net(x, stitch=stitch)
        assert logits.shape == (2, net.num_classes), f'stitch {stitch} gives {tuple(logits.shape)}'
        assert not real or bool(logits.isfinite().all()), f'stitch {stitch} gives values that are not finite'
    size = 'x'.join(map(str, net.input_size[1:]))
    if real:
        note = f'{note}, with numbers'.removeprefix(', ')
    return Row(names, size, len(net.stitches), len(net.stitch_layers), note)


def answered(names: str, real: bool) -> Row:
    """The row of a family, whatever happens; a network that needs numbers gets them."""
    error: Exception | None = None
    for numbers in (True,) if real else (False, True):
        try:
            return tried(names, numbers)
        except snnet.SnnetError as refused:
            return Row(names, refusal=str(refused))
        except Exception as failed:
            error = failed
    return Row(names, refusal=f'FAILED with {type(error).__name__}: {" ".join(str(error).split())[:200]}')


def work(names: str, real: bool, answer: Connection) -> None:
    """The process of one family."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.getLogger('snnet').setLevel(logging.ERROR)
    torch.set_num_threads(1)
    answer.send(answered(names, real))


def swept(names: str, real: bool) -> Row:
    """A family's row from a process that may die."""
    context = multiprocessing.get_context('fork')
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(names, real, theirs))
    process.start()
    theirs.close()
    try:
        if mine.poll(LIMIT):
            return Row(*mine.recv())
        return Row(names, refusal=f'FAILED: no answer in {LIMIT:.0f} seconds')
    except EOFError:
        return Row(names, refusal='FAILED: the process died, perhaps for want of memory')
    finally:
        process.kill()
        process.join()


def table(rows: list[Row]) -> str:
    """The table, and a sentence that summarizes it."""
    nets = sum(bool(row.stitches) for row in rows)
    lines = [
        f'{nets} of {len(rows)} give a net whose anchors and five stitches run.',
        '',
        '| networks | image | stitches | stitch layers | note |',
        '|---|---|---|---|---|',
        *(f'| {r.names} | {r.size} | {r.stitches} | {r.layers} | {r.note} |' for r in rows if r.stitches),
        '',
        'Refused:',
        '',
        '| networks | sentence |',
        '|---|---|',
        *(f'| {r.names} | {r.refusal} |' for r in rows if not r.stitches),
    ]
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Sweeps, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help='families, each as names separated by commas; all by default')
    parser.add_argument('--out', type=Path, help='file for the table')
    parser.add_argument('--real', action='store_true', help='run with numbers')
    args = parser.parse_args()
    set_up_logging()
    families = args.names or FAMILIES.split()
    progress = Progress(len(families), 'families')
    rows, begin = [], time.monotonic()
    for names in families:
        rows.append(swept(names, args.real))
        print(*rows[-1], flush=True)
        progress.update(1, names)
    progress.close()
    text = table(rows)
    print(text, f'{time.monotonic() - begin:.0f} seconds')
    if args.out:
        args.out.write_text(text)


if __name__ == '__main__':
    main()
