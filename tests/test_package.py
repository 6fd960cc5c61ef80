"""The package as users meet it: cheap to import, every public name callable, rooms in order."""

import importlib
import pkgutil
import subprocess
import sys

import deadreckon


def test_importing_pulls_in_neither_torch_nor_transformers_nor_numpy():
    code = (
        "import sys, deadreckon\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'msgspec'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_reading_a_checkpoint_needs_no_torch(minilm):
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'gguf'): sys.modules[name] = None\n"  # importing one now fails
        "import deadreckon\n"
        f"print(deadreckon.read({str(minilm)!r}).dead_count)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3", done.stderr


def test_every_public_name_is_callable_after_every_module_is_imported():
    for module in pkgutil.walk_packages(deadreckon.__path__, "deadreckon."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in deadreckon.__all__:
        assert callable(getattr(deadreckon, name)), name
    assert set(deadreckon._HOMES) == set(deadreckon.__all__) <= set(dir(deadreckon))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(deadreckon, "nonsense")
