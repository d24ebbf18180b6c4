"""What is compiled ahead of time has the key under which a launch looks for it in Triton's cache, for every kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from paiton.search_spaces.registry import KERNEL_NAMES

# Nothing is compiled: both ways end where Triton would look into its cache, with the source and options of its key.
KEYS = """
import json
import triton, triton.compiler
from triton.compiler.compiler import make_backend
from paiton.autotune.aot import compile_unit, target_of, units_of
from paiton.kernels_triton.registry import spec_of
from paiton.search_spaces.arch import resolve
from paiton.search_spaces.load_model import load_model
from paiton.search_spaces.workload import problems

SMALL = {"n": 256, "k": 256, "n_q": 256, "n_kv": 256, "hidden": 256, "inter": 256, "experts": 16}

class Driver:
    get_current_target = lambda self: target
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

def take(source, target, options):
    keys.append((source.hash(), make_backend(target).parse_options(dict(options)).hash()))

triton.compile = triton.compiler.compile = take
triton.runtime.driver.set_active(Driver())
found = {}
for arch in ("gfx942", "gfx950", "sm_90"):
    device = resolve(arch)
    target = target_of(device)
    for model in ("Qwen3-32B", "Qwen3-30B-A3B"):
        for item in problems(load_model(model), batch_sizes=[2], prefill_lengths=[16], context=64):
            name = item.problem.kernel
            if f"{arch} {name}" in found:
                continue
            spec, dims = spec_of(name), item.problem.dims()
            dims |= {size: SMALL[size] for size in dims if size in SMALL}
            problem = spec.space.problem(dtype="bf16", batch=item.problem.batch, **dims)
            config = spec.space.default_config(problem, device)
            keys = []
            for unit in units_of(spec.meta_plan(problem, config, device), device):
                compile_unit(unit)
            ahead, keys = keys, []
            inputs = spec.make_inputs(problem, torch_device="cpu", seed=0)
            for launch in spec.plan(*inputs, config=config, device=device).launches:
                launch.fn.device_caches.clear()
                launch.fn.warmup(**launch.args, **launch.constexprs, **launch.options, grid=launch.grid)
            found[f"{arch} {name}"] = bool(ahead) and ahead == keys
print(json.dumps(found))
"""


def test_a_launch_has_the_key_of_what_was_compiled() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", KEYS], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    expected = [f"{arch} {kernel}" for arch in ("gfx942", "gfx950", "sm_90") for kernel in KERNEL_NAMES]
    assert json.loads(done.stdout) == dict.fromkeys(expected, True)
