"""`cotjax bench forms`: the train step of a few layers in several forms, timed in one process.

A form that is compiled takes tens of seconds, and the time of a GPU is dear: the first is compiled
alone, so that what the compiler tries out on the device is known to the others, which are compiled
side by side. All are timed on one state. The difference of two forms, times the share of layers
that the whole model has more, is theirs in the whole model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import jax
import optax
from rich.console import Console

from cotjax.bench.comparison import check_counts, print_table, say
from cotjax.bench.jobs import B1, B2, LEARNING_RATE, WEIGHT_DECAY, TrainJob
from cotjax.bench.models import named_model
from cotjax.bench.ours import batch_of
from cotjax.model.config import ModelConfig
from cotjax.model.flops import peak_flops, train_flops, utilisation
from cotjax.model.fused import joined
from cotjax.model.kernels import kernel_for
from cotjax.model.params import Params, init_params
from cotjax.model.platform import compiler_options, tuned_as
from cotjax.model.sharding import batch_sharding, make_mesh
from cotjax.objectives.objective import Objective, Pairs
from cotjax.objectives.supervised import make_objective
from cotjax.train.optim import make_optimizer, needs_master
from cotjax.train.step import TrainState, abstract_state, init_state, make_train_step

_SIDE_BY_SIDE, _STEPS = 5, 4
_COMPILING = 0.7  # share of the time


@dataclass(frozen=True)
class Form:
    """How a step is written: `scan`, `remat` and `attention` as in `decoder.hidden_states`.

    `attention` "auto" is that of rows of one example; `options` are XLA's, beside the platform's;
    `joined`: q, k and v as one, gate and up as one (fused.joined).
    """

    scan: bool = False
    remat: str = "dots"
    attention: str = "auto"
    options: tuple[tuple[str, str | bool], ...] = ()
    joined: bool = False

    def __str__(self) -> str:
        layers = "scanned" if self.scan else "unrolled"
        options = [f"{name.removeprefix('xla_')}={value}" for name, value in self.options]
        joined = ["joined"] if self.joined else []
        how = [layers, f"remat {self.remat}", f"attention {self.attention}"]
        return ", ".join([*how, *joined, *options])


# From what is expected to matter most to least.
FORMS = (
    Form(),
    Form(scan=True),
    Form(remat="mlp"),
    Form(joined=True),
    Form(scan=True, remat="mlp"),
    Form(remat="none"),
)
# Platform -> further ones, which need its kernels or options.
FURTHER: Mapping[str, tuple[Form, ...]] = {
    "gpu": (
        Form(attention="pallas"),
        Form(options=(("xla_gpu_enable_triton_gemm", False),)),
        Form(options=(("xla_gpu_enable_latency_hiding_scheduler", True),)),
        Form(scan=True, options=(("xla_gpu_enable_dynamic_slice_fusion", True),)),
    ),
}


@dataclass(frozen=True)
class Settings:
    """`layers` of the sizes of `model` (models.named_model), `batch` rows of `length` tokens.

    `seconds`: after which no further form is timed.
    """

    model: str = "qwen3-4b"
    dtype: str = "bfloat16"
    layers: int = 8
    batch: int = 8
    length: int = 4096
    seconds: int = 120


def compare_forms(
    settings: Settings, console: Console | None = None, forms: tuple[Form, ...] | None = None
) -> dict[Form, float]:
    """Print a table and return the median seconds of a step of each form that ran.

    `forms`: None takes FORMS and the platform's of FURTHER. A form that does not compile or does
    not fit is named with the reason.

    Raises UsageError for sizes below one.
    """
    console, started = console or Console(highlight=False), time.perf_counter()
    names = ("layers", "batch", "length", "seconds")
    check_counts({name: getattr(settings, name) for name in names})
    bench = _Bench(settings)
    forms = (*FORMS, *FURTHER.get(bench.platform, ())) if forms is None else forms
    made = _compiled(bench, forms, started + _COMPILING * settings.seconds)
    found, rows = dict[Form, float](), []
    for form, each in made.items():
        if each.cancelled() or not each.done() or time.perf_counter() - started > settings.seconds:
            say(console, f"{form}: no time left")
            continue
        try:
            program, seconds = each.result()
            found[form] = bench.timed(program)
        # What a compiler or a device says of a form is a result.
        except (jax.errors.JaxRuntimeError, ValueError, TypeError) as error:
            say(console, f"{form}: {' '.join(str(error).split())[:300]}")
            continue
        rows.append([str(form), *bench.row(found[form], program), f"{seconds:.0f} s"])
    batch = f"{settings.batch} rows of {settings.length} tokens, {settings.dtype}"
    device = jax.devices()[0].device_kind
    say(console, f"{settings.model}: {bench.config.layers} layers, {batch}, on {device}")
    print_table(console, ("form", "median step", "MFU", "temporaries", "compiled in"), rows)
    return found


def _compiled(
    bench: _Bench, forms: tuple[Form, ...], until: float
) -> dict[Form, Future[tuple[Any, float]]]:
    """Compile all forms, the first alone, and return them; some may not be done by then."""
    pool = ThreadPoolExecutor(_SIDE_BY_SIDE)
    made: dict[Form, Future[tuple[Any, float]]] = {}
    for form in forms:
        made[form] = pool.submit(bench.compiled, form)
        if len(made) == 1:
            wait(made.values(), max(0, until - time.perf_counter()))
    wait(made.values(), max(0, until - time.perf_counter()))
    pool.shutdown(wait=False, cancel_futures=True)
    return made


def _joined(config: ModelConfig, objective: Objective, params: Params, batch: Any) -> Pairs:
    return objective(joined(config, params), batch)


class _Bench:
    """One model, batch and state, on which all forms run in turn."""

    def __init__(self, settings: Settings):
        sizes = named_model(settings.model, settings.dtype)
        self.config: ModelConfig = replace(sizes, layers=min(settings.layers, sizes.layers))
        self._mesh, self._lengths = make_mesh(), [settings.length] * settings.batch
        self.platform = tuned_as(self._mesh)
        self._optimizer = make_optimizer(
            optax.constant_schedule(LEARNING_RATE),
            b1=B1,
            b2=B2,
            weight_decay=WEIGHT_DECAY,
            clip_norm=0.0,
            master=needs_master(self.config),
        )
        job = TrainJob(
            model={"vocab_size": self.config.vocab_size},
            batch=settings.batch,
            length=settings.length,
        )
        self._batch = jax.device_put(batch_of(job.ids()), batch_sharding(self._mesh))
        self._state: TrainState | None = None

    def compiled(self, form: Form) -> tuple[Any, float]:
        """Return the compiled step and the seconds that its compiler took."""
        config, mesh = self.config, self._mesh
        kernel = kernel_for(config, mesh, form.attention, alone=lambda: True)
        objective = make_objective(config, mesh, remat=form.remat, scan=form.scan, kernel=kernel)
        if form.joined:
            objective = partial(_joined, config, objective)
        with jax.set_mesh(mesh):
            state = abstract_state(config, self._optimizer, mesh)
            step: Any = make_train_step(config, self._optimizer, state.params, mesh, objective)
            lowered = step.lower(state, self._batch)
        started = time.perf_counter()
        options = (compiler_options(mesh) or {}) | dict(form.options)
        program = lowered.compile(compiler_options=options or None)
        return program, time.perf_counter() - started

    def timed(self, program: Any) -> float:
        """Return the median seconds of a step, without the first."""
        if self._state is None:
            with jax.set_mesh(self._mesh):
                params = init_params(self.config, jax.random.key(0), self._mesh)
                self._state = init_state(self.config, self._optimizer, params, self._mesh)
        # A step that fails has consumed its state.
        state, self._state, seconds = self._state, None, []
        for _ in range(1 + _STEPS):
            started = time.perf_counter()
            state, metrics = program(state, self._batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - started)
        self._state = state
        return median(seconds[1:])

    def row(self, seconds: float, program: Any) -> list[str]:
        """Return the columns of a form: step, MFU, temporaries."""
        peak, mfu = peak_flops(jax.devices()[0].device_kind), "unknown"
        if peak is not None:
            flops = train_flops(self.config, self._lengths)
            mfu = f"{100 * utilisation(flops, seconds, peak * self._mesh.size):.1f} %"
        size = program.memory_analysis().temp_size_in_bytes
        return [f"{1e3 * seconds:.4g} ms", mfu, f"{size / 1e9:.2f} GB"]
