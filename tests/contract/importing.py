"""Code that imports modules of the package, for a process of its own or a fresh environment."""

from __future__ import annotations

import inspect

# What comes after training needs the group `serving`, and nothing else needs it.
AFTER_TRAINING = (
    "cookbook.serving",
    *(f"cookbook.commands.{name}" for name in ("chat", "export", "push", "serve")),
)
# Runs with llama.cpp's converter on its path, in a process of its own.
OF_THE_CONVERTER = ("cookbook.serving.convert",)


def is_within(name: str, modules: tuple[str, ...]) -> bool:
    """Tell whether a module is one of some modules, or within one of them."""
    return f"{name}.".startswith(tuple(f"{one}." for one in modules))


def import_all(apart: tuple[str, ...]) -> str:
    """Return lines that import all modules but those `apart` and within; `names` are those."""
    return f"""
import importlib, pkgutil, cookbook
{inspect.getsource(is_within)}
names = [module.name for module in pkgutil.walk_packages(cookbook.__path__, "cookbook.")]
names = [name for name in names if not (name.endswith(".__main__") or is_within(name, {apart}))]
for name in names:
    importlib.import_module(name)
"""
