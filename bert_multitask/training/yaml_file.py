"""Reading YAML files that people write."""

import difflib
import os
from pathlib import Path
from typing import Any

import yaml

from ..model.configuration import resolve_folder
from ..model.errors import InputError, explained

CONFIGS = Path(__file__).parents[1] / "configs"  # those that the package ships


class ConfigLoader(yaml.SafeLoader):
    """Reads YAML without aliases, of which a few lines can make a document of any size, and without repeated keys."""

    def compose_node(self, parent, index):
        """Overridden to refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"*{event.anchor} is an alias; write the value of &{event.anchor} again",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def compose_scalar_node(self, anchor):
        """Overridden to refuse NUL characters, which no path and no name may hold."""
        node = super().compose_scalar_node(anchor)
        if "\0" in node.value:
            raise yaml.MarkedYAMLError(problem=f"{node.value!r} has a NUL character", problem_mark=node.start_mark)
        return node

    def compose_mapping_node(self, anchor):
        """Overridden to refuse repeated keys, of which PyYAML takes the last."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def find_config(name: str | Path) -> Path:
    """The configuration file of a name: the user's own file, `package:NAME/PATH`, or one that the package ships, by its
    place in `configs`, with or without `.yaml`."""
    path = Path(name).expanduser()
    if str(name).startswith("package:"):
        folder, _, file = str(name).rpartition("/")
        return Path(resolve_folder(folder), file)
    shipped = CONFIGS / path.with_suffix(".yaml")
    return shipped if shipped.is_file() and not path.is_file() else path


def load_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        InputError: there is no such file, or it is not YAML, or has an alias, a repeated key or a NUL character;
            names the file.
    """
    if not os.path.exists(path):
        shipped = sorted(str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml"))
        beside = [str(file) for file in path.parent.glob("*.y*ml")]
        near = difflib.get_close_matches(str(path), [*beside, *shipped], n=1, cutoff=0.75)
        names = [name.removesuffix(".yaml") for name in shipped if Path(name).parent == Path()]
        hint = f"did you mean {near[0]}?" if near else f"the package ships {', '.join(names)}, and others in paper/"
        raise InputError(f"{path}: no such configuration file; {hint}")
    with (
        explained(f"{path}: not a YAML file"),  # a tag such as !!int raises whatever Python raises for a wrong value
        explained(f"{path}: its values are nested too deeply", RecursionError),
        explained(f"{path}: cannot be read", OSError),
    ):
        return yaml.load(path.read_text(encoding="utf-8"), ConfigLoader)
