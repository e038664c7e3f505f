"""What a file is that was given for weights and holds none that can be read."""

from __future__ import annotations

import zipfile
from pathlib import Path

_STARTS = (
    (b'version https://git-lfs', 'is a pointer of Git LFS, not the file itself (git lfs pull fetches it)'),
    (b'\x1f\x8b', 'is compressed by gzip: unpack it first'),
    (b'BZh', 'is compressed by bzip2: unpack it first'),
    (b'\x93NUMPY', 'holds a numpy array, not named tensors'),
    (b'\x89HDF', 'is a file of HDF5 (Keras), not of torch or safetensors'),
    (b'GGUF', 'is a file of GGUF, not of torch or safetensors'),
    (b'\x08', 'is a network of ONNX or another format of protocol buffers, not of torch or safetensors'),
    (b'<', 'is a web page, not weights: perhaps a download that went wrong'),
)


def reason_not_weights(path: Path) -> str:
    """Why a file that could not be read holds no weights, as the end of a sentence; empty where nothing is known."""
    with open(path, 'rb') as file:
        head = file.read(64).lstrip()
    if not head:
        return 'is empty'
    for start, reason in _STARTS:
        if head.startswith(start):
            return reason
    if path.name.endswith('.index.json'):
        return 'lists the files that the weights are divided into: load these, and save one table of tensors'
    if all(byte in b'\t\n\r' or 32 <= byte < 127 for byte in head):
        return 'is a text, not weights'
    return _reason_of_archive(path) if head.startswith(b'PK') else ''


def _reason_of_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition('/')[2] for name in archive.namelist()]
    except zipfile.BadZipFile:
        return 'is cut off or damaged'
    if any(name.endswith('.npy') for name in names):
        return 'holds numpy arrays: save them as tensors with safetensors or torch.save'
    if 'archive_format' in names:
        return 'is a program of torch.export: save the state_dict of torch.export.load(...) with torch.save'
    if 'constants.pkl' in names:
        return 'is a TorchScript archive: save the state_dict() of torch.jit.load(...) with torch.save'
    return '' if 'data.pkl' in names else 'is an archive that torch did not write'
