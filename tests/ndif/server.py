"""What an NDIF 0.1.2 server needs to run on a CPU beside nnsight 0.8.1 and transformers 5.23.

Loaded by the server itself through the class names that up.sh gives it; nothing of it is patched on
disk. Each shim answers one failure that was seen:

- it synchronises with a CUDA device that is not there;
- its evaluator passes `trust_remote_code=` to two functions of nnsight that take it no more.

That transformers names a pipeline's class by a string, where nnsight looks for the class, is mended
in sitecustomize.py, for the sandbox's processes too.
"""

import functools
import inspect

import ray
import torch
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.mixins.remotable import Remotable


def _nothing(*args: object, **options: object) -> None:
    """In place of what only a GPU can do."""


if not torch.cuda.is_available():
    torch.cuda.synchronize = torch.cuda.empty_cache = _nothing


def _without_remote_code(name: str) -> None:
    known = getattr(Remotable, name).__func__
    if {"kwargs", "trust_remote_code"} & set(inspect.signature(known).parameters):
        return

    @functools.wraps(known)
    def called(cls, *args, trust_remote_code=None, **options):
        return known(cls, *args, **options)

    setattr(Remotable, name, classmethod(called))


_without_remote_code("describe_checkpoint")
_without_remote_code("max_tp_size")


class _OnCPU(BaseModelDeployment):
    CACHEABLE = False

    def load_from_disk(self):
        options = {k: v for k, v in self.kwargs.items() if k != "trust_remote_code"}
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **options
        )
        model._module.requires_grad_(False)
        return model


class _Sandboxed(_OnCPU, SandboxModelDeployment):
    """Every request in a process of its own, as for keys that are not trusted."""

    def __init__(self, *args, **options):
        SandboxModelDeployment.__init__(self, *args, pool_size=1, **options)

    async def run(self, request):
        request.trusted = False  # without a database of keys all would be
        return await super().run(request)


class _Controller(_ControllerActor):
    """By name, so that ray's worker imports this module: it pickles an actor's class by value, but
    not its bases."""


@ray.remote(num_cpus=0, max_restarts=-1)
class TrustedActor(_OnCPU):
    pass


@ray.remote(num_cpus=0, max_restarts=-1)
class SandboxActor(_Sandboxed):
    pass


@ray.remote(num_cpus=1, num_gpus=0, max_restarts=-1, resources={"head": 1})
class ControllerActor(_Controller):
    pass
