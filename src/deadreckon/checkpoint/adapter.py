"""PEFT adapters: files that hold what was trained beside a base model, and name it."""

from __future__ import annotations

from deadreckon.checkpoint.bounded import CONFIG_LIMIT, read_json
from deadreckon.checkpoint.places import Place, exists, is_dir

_CONFIG = "adapter_config.json"


def adapter_note(path: Place) -> str:
    """What to say of a checkpoint that is a PEFT adapter.

    Args:
        path: its directory or file.

    Returns:
        That it is one, and its base model where that is named; empty for any other checkpoint.

    Raises:
        InputError: its config is damaged.
        UnreachableError: its config cannot be read.
    """
    folder = path if is_dir(path) else path.parent
    if not exists(folder / _CONFIG) or not (is_dir(path) or path.name.startswith("adapter_model.")):
        return ""
    config, _ = read_json(folder / _CONFIG, CONFIG_LIMIT)
    config = config if isinstance(config, dict) else {}
    kind = str(config.get("peft_type") or "PEFT")[:40]
    base = config.get("base_model_name_or_path")
    named = f"its base model, {base[:200]!r}" if isinstance(base, str) and base else "its base model"
    return f"a {kind} adapter: it holds what was trained beside the base model, not the model; read {named}"
