"""`snnet report FOLDER`: writes a page about a training run or a saved net."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.sections import option


@dataclass
class ReportSettings:
    """Settings of `snnet report`."""

    folder: str = option('', 'output folder of a training run, folder of a saved net, or its id on the Hub')
    out: str = option('', 'file to write (default: report.html in the folder)')
    data_dir: str = option('', 'the images that were evaluated, to show some that only larger stitches get right')
    dataset: str = option('', "timm's name of the data set (default: the folder)")
    class_map: str = option('', 'file that maps class names to indices')
    labels: str = option('', 'CSV file of the labels, where the images were evaluated with several')
    val_split: str = option('validation', 'name of the split that was evaluated')
    evaluation: str = option('', 'folder of the results (default: evaluation, in the folder of the net)')
    examples: int = option(12, 'images to show at most', least=0)
    plugin: list[str] = option([], 'Python files that register networks and adapters')


def run(settings: ReportSettings) -> None:
    """Writes the page and says where.

    Raises:
        SnnetError: no net, bad settings, or images that are not those that were evaluated.
        OSError: the page cannot be written.
    """
    from ..config.sections import check_ranges  # here, so that --help does not load torch
    from ..data.datasets import DataSettings
    from ..evaluation.report import write_report
    from ..utils.plugins import import_plugins

    check_ranges(settings)
    import_plugins(settings.plugin)
    data = DataSettings(
        data_dir=settings.data_dir, dataset=settings.dataset, class_map=settings.class_map, labels=settings.labels
    )
    path = write_report(settings.folder, settings.out, data, settings.val_split, settings.evaluation, settings.examples)
    print('wrote', path)
