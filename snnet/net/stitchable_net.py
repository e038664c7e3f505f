"""StitchableNet: anchors, stitch layers, and the stitches that run through them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..saving.hub import locate
from .embed import embed
from .extract import ExtractedStitch, extract_stitch
from .feature_levels import Level
from .measured_net import MeasuredNet
from .parameter_depths import parameter_depths
from .predict import Picture, Prediction, predict
from .preprocessing import timm_config
from .projections import make_projections
from .save_and_load import load_net, push_net, save_net
from .timm_methods import LegRun, TimmMethods, reset_classifiers

if TYPE_CHECKING:
    from typing_extensions import Self


class StitchableNet(MeasuredNet, TimmMethods):
    """One network that is a whole family: runs any of its stitches on demand.

    `JoinedAnchors` activates and runs stitches, `MeasuredNet` remembers what was measured of them and chooses one by a
    budget. This class cuts stitches out, names and embeds images, answers timm's scripts, saves and loads.

    It takes built anchors and builds only the stitch layers. Parameters are named `anchors.{i}.model.*`, as in the
    wrapped models, and `stitch_layers.{l}.weight` and `.bias`.

    What is known of the stitches (accuracies, BatchNorm statistics, parameters of their own, latency tables) belongs to
    the weights it was made with: it is dropped, with a warning, once they change. Costs are measured again where
    modules change.

    Args:
        anchors: one or more, with distinct names, one class count and one image size.
        stitches: the sub-networks; a stitch's id is its index.

    Attributes:
        stitches: the sub-networks, by id.
        known: what is known of them; `records` shows it.
        preprocessing: how images are prepared for evaluation where that differs from the first anchor's own way, in
            timm's words ('crop_pct', 'interpolation'); saved with the net.

    Raises:
        CannotStitch: a leg runs an anchor or a position that is not there, or boundaries do not join.
    """

    def extract(self, stitch: int, *, intermediates: bool = False) -> ExtractedStitch:
        """Cuts one stitch out: a plain module with copies of only its own parameters and the same output.

        Args:
            stitch: id of the stitch.
            intermediates: take along the stitch layers that `forward_intermediates` needs for the features of fronts.

        Raises:
            UnknownStitch: no such id.
        """
        self.known.verified(self).follow_modules(self)
        return extract_stitch(self, self.checked(stitch), intermediates)

    def predict(
        self, images: Picture | Iterable[Picture], *, stitch: int | None = None, topk: int = 5, batch_size: int = 32,
    ) -> list[Prediction]:  # fmt: skip
        """The most probable classes of images, with their names where the net has `class_names`.

        Files, images of Pillow and pixels are resized, cropped and normalized as the net expects.

        Args:
            images: one image or any number of them: files, images of Pillow, arrays of pixels (height, width, 3) of
                type uint8, tensors of pixels (3, height, width) of type uint8, or normalized tensors
                (channels, height, width); also a batch as one array or tensor.
            stitch: id of the stitch to run; the active one where None.
            topk: how many classes per image.
            batch_size: images per run.

        Returns:
            A prediction per image, in their order.

        Raises:
            SnnetError: an image that cannot be read (the message names it) or that has another shape or type, or a
                net without classes.
            UnknownStitch: no such id.
        """
        return predict(self, images, stitch, topk, batch_size)

    def embed(self, images: Picture | Iterable[Picture], *, stitch: int | None = None, batch_size: int = 32) -> Tensor:
        """Embeddings of images (N, width) from a net without classes, of one width whatever the stitch.

        The width is that of the largest anchor. Embeddings of stitches that end in another anchor are mapped to it by
        what `snnet.fit_embeddings` fitted. They are not normalized to unit length.

        Args:
            images: as for `predict`.
            stitch: id of the stitch to run; the active one where None.
            batch_size: images per run.

        Raises:
            SnnetError: a net with classes, embeddings of another width that were not fitted yet, or an image that
                cannot be read (the message names it).
            UnknownStitch: no such id.
        """
        return embed(self, images, stitch, batch_size)

    # The methods of timm's networks: those that run or describe one network mean the active stitch.

    def leg_runs(self) -> list[LegRun]:
        """The legs of the active stitch."""
        stitch, tables = self.stitches[self.active], self.tables(self.active)
        runs = []
        for i, leg in enumerate(stitch.legs):
            anchor = self.anchor(leg.anchor)
            layer = self.layer(stitch.layers[i - 1]) if i else None
            stop = len(anchor.line()) if leg.stop is None else leg.stop
            name = f'anchors.{self.index_of(leg.anchor)}'
            runs.append(LegRun(anchor, leg.start, stop, layer, tables[i] if tables else None, name))
        return runs

    def feature_levels(self) -> list[Level]:
        """The levels of features of the active stitch."""
        return self.levels_of(self.active)

    def level_layers(self, level: Level) -> list[nn.Module]:
        """The stitch layers that map the features of a level to the width of the end."""
        return [self.layer(index) for index in level.tap.layers]

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How images are prepared and what the classes are, in the words of timm's pretrained configs."""
        return timm_config(self)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Gives every anchor a new classifier with random weights.

        Accuracies, statistics and latency tables are dropped; class names and `several_labels`, too.

        Args:
            num_classes: width of the logits; 0 for embeddings (see `embed`).
            global_pool: another kind of pooling, in timm's words, where the networks know it.

        Raises:
            SnnetError: a network that cannot, or refuses this pooling.
        """
        reset_classifiers([self.anchor(i) for i in range(len(self.anchors))], num_classes, global_pool)
        self.class_names, self.several_labels = None, False
        self.projections = make_projections([self.anchor(i) for i in range(len(self.anchors))])
        self.known.verified(self, thorough=True).follow_modules(self)

    def _depths(self, coarse: bool) -> dict[str, int]:
        return parameter_depths(self, coarse)

    # Saving and loading, in the shape that users of Hugging Face know.

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> None:
        """Writes config.json (anchors, stitches, records), model.safetensors and, if any, what stitches have for
        themselves: statistics.safetensors and own_parameters.safetensors.

        Each file is written whole or not at all. README.md becomes a model card; of one that is there already, only
        the section that snnet wrote is replaced.

        Args:
            folder: made where it is missing; other files in it are left alone.
            license: of the weights, for the card; 'unknown' by default.

        Raises:
            SnnetError: an anchor that could not be built again as it is now, or weights that are not finite; nothing
                is written then.
        """
        save_net(self, Path(folder), license)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, num_classes: int | None = None, revision: str | None = None,
        cache_dir: str | Path | None = None, token: str | bool | None = None,
        local_files_only: bool = False, force_download: bool = False,
    ) -> Self:  # fmt: skip
        """Builds the net that `save_pretrained` or `push_to_hub` wrote, in eval mode.

        Args:
            folder: a folder, or OWNER/NAME or OWNER/NAME@REVISION on the Hub.
            num_classes: width of the logits; another one than was saved gives every anchor a new classifier with
                random weights, and keeps everything else.
            revision, cache_dir, token, local_files_only, force_download: see `snnet.saving.hub.locate`.

        Raises:
            SnnetError: the folder holds no net, one of a newer version, or one of a family not known here.
            NoWeights: the weights or statistics are missing, damaged or do not belong to the config.
        """
        found = locate(
            folder, revision=revision, cache_dir=cache_dir, token=token,
            local_files_only=local_files_only, force_download=force_download,
        )  # fmt: skip
        return load_net(cls, found, num_classes)

    def push_to_hub(
        self, repo_id: str, *, commit_message: str = 'A stitchable network', private: bool | None = None,
        token: str | bool | None = None, revision: str | None = None, create_pr: bool = False,
        license: str | None = None,
    ) -> str:  # fmt: skip
        """Uploads what `save_pretrained` writes, and the latency tables; makes the repository where it is missing.

        A model card that is there already is treated as `save_pretrained` does.

        Args:
            repo_id: OWNER/NAME.
            commit_message: of the commit.
            private: whether a new repository is private; by default what the Hub has as default.
            token: of the Hub; by default the one that `hf auth login` or HF_TOKEN gave.
            revision: branch, made where it is missing; the main one by default.
            create_pr: propose the commit as a pull request instead.
            license: of the weights, for the card.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            SnnetError: a net that cannot be saved, or the Hub refuses or cannot be reached.
        """
        return push_net(
            self, repo_id, license, commit_message=commit_message, private=private, token=token,
            revision=revision, create_pr=create_pr,
        )  # fmt: skip
