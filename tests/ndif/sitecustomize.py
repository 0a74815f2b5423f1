"""In every process of the test server, before anything else."""

import contextlib
import importlib
import importlib.abc
import importlib.util
import sys

MENDED = "nnsight.modeling.transformers"
KINDS = ("tokenizer", "image_processor", "feature_extractor", "processor")


class _Mend(importlib.abc.MetaPathFinder):
    """transformers 5.23 names a task's pipeline by a dotted string; nnsight 0.8.1 reads the flags
    off the string itself and then knows of no tokenizer."""

    asking = False

    def find_spec(self, name, path, target=None):
        if name != MENDED or self.asking:
            return None
        self.asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.asking = False
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.TransformersModel._loaded_preprocessors = _loaded_preprocessors

        spec.loader.exec_module = exec_module
        return spec


def _loaded_preprocessors(model):
    from transformers.pipelines import check_task

    pipeline = check_task(model.task)[1]["impl"]
    if isinstance(pipeline, str):
        module, _, name = pipeline.rpartition(".")
        pipeline = getattr(importlib.import_module(module), name)
    return {kind for kind in KINDS if getattr(pipeline, f"_load_{kind}", False)}


sys.meta_path.insert(0, _Mend())
# nnsight puts `.save` on `object`, which breaks anyio modules that are imported after it: a request
# of more than 1 MB could then not be read.
with contextlib.suppress(ImportError):
    import anyio.abc._sockets
    import anyio.streams.file
    import anyio.streams.tls  # noqa: F401
