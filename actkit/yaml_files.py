"""Options from YAML files, restricted to plain values so that nothing is executed."""

from pathlib import Path
from typing import Any

import yaml

from .errors import Fault
from .regular_files import MB, read_regular

MOST_BYTES = MB // 8


def read_yaml(path: Path, *, follow: bool = True) -> tuple[dict[str, Any], list[Fault]]:
    """Read options from a YAML file, without executing anything in it.

    Parameters
    ----------
    path
        Regular file of at most ``MOST_BYTES`` bytes with a mapping of option names to values.
    follow
        Whether to follow a link, because the user chose the path.

    Returns
    -------
    options : dict
    faults : list of Fault
        Unreadable file, invalid UTF-8, tags, repeated keys, with line numbers.
    """
    try:
        text = read_regular(path, MOST_BYTES, follow=follow).decode("utf-8")
        loaded = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        return {}, [Fault(str(path), f"cannot be read: {error.strerror}", "check the path")]
    except UnicodeDecodeError as error:
        return {}, [Fault(str(path), f"is not UTF-8 at byte {error.start}", "save it as UTF-8")]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        return {}, [Fault(where, problem, "write plain name: value lines")]
    except (
        ValueError,
        RecursionError,
    ) as error:  # a NUL character in the path, a 13th month, deeply nested brackets
        return {}, [Fault(str(path), f"cannot be read: {error}", "write plain name: value lines")]
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        return {}, [Fault(str(path), "is not a mapping of option names to values", "write name: value lines")]
    return loaded, []


class _Loader(yaml.SafeLoader):
    """YAML loader that rejects tags, aliases and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag, alias = getattr(event, "tag", None), isinstance(event, yaml.AliasEvent)
        if tag is not None or alias:
            problem = "aliases are refused" if alias else f"tag {tag} is refused"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key}` is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
