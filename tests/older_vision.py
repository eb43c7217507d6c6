"""The tiny vision model as older ones are published: only its processor has a chat template."""

from __future__ import annotations

import json
from pathlib import Path


def older(model: Path, place: Path) -> Path:
    """Returns such a folder below `place`, with links to the files of `model`."""
    folder = place / "older"
    folder.mkdir()
    template = model / "chat_template.jinja"
    for file in model.iterdir():
        if file != template:
            (folder / file.name).symlink_to(file)
    text = json.dumps({"chat_template": template.read_text()})
    (folder / "chat_template.json").write_text(text)
    return folder
