"""Record what the images weigh and how long they take to build: `python -m tests.containers`.

Three builds of `dev`: with every step done anew, unchanged, and after a change of code; then
`prod`. What Docker's cache mounts hold of downloaded packages stays there, so the first build
measures installing more than the network.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cookbook.commands.record import filled
from cookbook.profiles import ROOT, device_name
from tests.containers import engine, trees

PACKAGES = "scripts/poetry.py install --no-root"  # the steps that install what the lock names
RESULT = ROOT / "results" / "containers" / "images.json"
PAGE = ROOT / "tests" / "containers" / "README.md"


def packages_of(image: dict[str, Any]) -> int:
    """Return the bytes of the layers that hold what the lock names."""
    return sum(one["bytes"] for one in image["layers"] if PACKAGES in one["instruction"])


def tables(content: dict[str, Any]) -> str:
    """Return a record as two Markdown tables: the images' sizes, and the seconds of a build."""
    sizes = [
        f"| `{name}` | {image['bytes'] / 1e9:.2f} GB | {packages_of(image) / 1e9:.2f} GB |"
        for name, image in content["images"].items()
    ]
    seconds = content["build_seconds"]
    times = " | ".join(f"{seconds[name]:.0f} s" for name in ("cold", "warm", "code_changed"))
    return "\n".join(
        [
            "| image | all of it | packages of the lock |",
            "| --- | --- | --- |",
            *sizes,
            "",
            "| building `dev` on | every step anew | nothing changed | a change of code |",
            "| --- | --- | --- | --- |",
            f"| {content['hardware']['device']}, {content['hardware']['cores']} cores | {times} |",
        ]
    )


def with_tables(text: str) -> str:
    """Return a Markdown text with its tables of images filled from the record."""
    content = json.loads(RESULT.read_text(encoding="utf-8"))
    return filled(text, lambda name: tables(content) if name == "containers" else None)


def weighed(project: engine.Project, image: str) -> dict[str, object]:
    """Return the bytes of an image, in total and by layer."""
    layers = project.layers(image)
    return {
        "bytes": sum(layer.bytes for layer in layers),
        "layers": [
            {"instruction": layer.instruction[:160], "bytes": layer.bytes} for layer in layers
        ],
    }


def measure(project: engine.Project) -> dict[str, object]:
    """Build every image and return sizes in bytes and times in seconds."""
    seconds = {
        "cold": project.build("BUILD_OPTIONS=--no-cache").seconds,
        "warm": project.build().seconds,
    }
    with (project.tree / "cookbook" / "__init__.py").open("a", encoding="utf-8") as module:
        module.write("\n# Changed.\n")
    seconds["code_changed"] = project.build().seconds
    images = {"dev": weighed(project, f"{project.name}:dev")}
    for group in ("", "peft"):
        name = f"prod{'-' * bool(group)}{group}"
        image = f"{project.name}:{name}"
        project.with_settings(COOKBOOK_IMAGE=image, TARGET="prod", GROUP=group).build()
        images[name] = weighed(project, image)
    return {
        "build_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "images": images,
    }


def main() -> int:
    """Write the record; exit status 2 where there is no engine."""
    if reason := engine.missing():
        print(f"no container engine: {reason}", file=sys.stderr)
        return 2
    with trees.temporary() as tree:
        project = engine.Project.of(tree, f"cookbook-record-{uuid.uuid4().hex[:8]}")
        try:
            found = measure(project)
        finally:
            project.remove()
    base = os.environ.get("BASE_IMAGE")
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {
            "device": device_name(),
            "cores": os.cpu_count(),
            "system": platform.machine(),
        },
        "base_image": Path(base).name if base else "the default",
        **found,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(json.dumps({"build_seconds": content["build_seconds"]}), f"-> {RESULT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
