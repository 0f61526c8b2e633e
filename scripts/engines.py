"""Real engines for tests, docs and benchmarks, on the bundled model: ``python scripts/engines.py vllm [--plugin] [--port N]``.

``start("vllm")`` is a context manager that gives an Engine; the command runs one in the foreground until Ctrl-C. The installs come
from ``scripts/install_vllm.sh`` and ``scripts/install_llama_server.sh``. What the kinds are good for:

- ``vllm``: logprobs of the whole vocabulary, and the package's plug-in inside the engine (``plugin=True``);
- ``llama``: llama.cpp's server, with a GGUF made from the checkpoint on the way;
- ``transformers``: ``transformers serve``, which accepts ``logprobs`` and sends none.

All sample alike unless a request says otherwise: temperature 1, nothing cut off.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, get_args

from entropy_chains.demo import MODEL_FOLDER
from entropy_chains.errors import BackendError, SettingsError

Kind = Literal["vllm", "llama", "transformers"]
ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entropy-chains"
VLLM, LLAMA = CACHE / "vllm-0.32.0", CACHE / "llama-server-0.3.36"  # as in the install scripts
PLUGIN = "entropy_chains.backends.vllm:EntropyStop"
CONTEXT = 2048
"""Tokens a conversation may have, prompt and reply; the bundled model was trained for no more."""

METRICS = {
    "vllm": ("vllm:generation_tokens_total", "vllm:num_requests_running"),
    "llama": ("llamacpp:tokens_predicted_total", "llamacpp:requests_processing"),
}


def check_sha256(file: Path, expected: str, name: str) -> None:
    """Raise ValueError where a package that was fetched is another one than it was when its SHA-256 was written down."""
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    if actual != expected:
        raise ValueError(f"{name} has the SHA-256 {actual}; it must be {expected}")


class Counters(TypedDict):
    """The engine's own figures: tokens it generated since its start, and requests it works on now."""

    generated: int
    running: int


@dataclass(frozen=True)
class Engine:
    """A running engine.

    Attributes:
        kind: vllm, llama or transformers; name: the model's name in requests.
        root_url: where ``/health`` and the engine's own routes are; base_url: the OpenAI-compatible part, ``…/v1``.
        log: file of all that the engine prints; it goes when the engine stops.
    """

    kind: Kind
    name: str
    root_url: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def base_url(self) -> str:
        return f"{self.root_url}/v1"

    @property
    def pid(self) -> int:
        """The process that was started; its group holds all of the engine."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether that process is still there."""
        return self.process.poll() is None

    def counters(self) -> Counters | None:
        """The engine's own counters from ``/metrics``; None where it has none (transformers).

        llama-server adds a request's tokens to ``generated`` when the request ends, vLLM while it runs.
        """
        if self.kind not in METRICS:
            return None
        with urllib.request.urlopen(f"{self.root_url}/metrics", timeout=30) as reply:  # noqa: S310  # our own loopback address
            text = reply.read().decode()
        generated, running = (
            sum(map(float, re.findall(rf"^{m}(?:{{.*}})? (\S+)$", text, re.MULTILINE))) for m in METRICS[self.kind]
        )
        return Counters(generated=int(generated), running=int(running))

    def let_others_first(self) -> None:
        """Give vLLM's engine process the lowest priority: on few cores it leaves no processor to vLLM's own HTTP server.

        The bundled model is so small that the whole reply is computed before the first half of it is sent: no client could stop it.
        """
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or there is no /proc
                if (process / "comm").read_text().startswith("VLLM::") and os.getpgid(int(process.name)) == self.pid:
                    for thread in (process / "task").iterdir():
                        os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)


def installed(kind: Kind) -> Path | None:
    """The folder of a finished install, or None."""
    folder = LLAMA if kind == "llama" else VLLM
    return folder if (folder / ".complete").exists() else None


@contextmanager
def start(
    kind: Kind,
    *,
    model: str | Path = MODEL_FOLDER,
    name: str = "demo",
    port: int = 0,
    plugin: bool = False,
    reasoning_parser: bool = True,
    parallel: int = 64,
    extra: Sequence[str] = (),
    timeout: float = 300,
) -> Iterator[Engine]:
    """Start an engine, wait until it answers, and stop it with all its processes at the end.

    Args:
        kind: vllm, llama or transformers.
        model: a checkpoint folder; for llama a GGUF file, or a folder that ``hf_to_gguf.py`` can convert.
        name: the model's name in requests.
        port: on the loopback interface; 0 = one that is free.
        plugin: load this package's logits processor into the engine (vllm only).
        reasoning_parser: thinking comes in a field of its own, not in the answer's text.
        parallel: requests that run at a time; more wait (vllm and llama).
        extra: further arguments for the engine.
        timeout: seconds until it must answer.

    Raises:
        SettingsError: the kind is unknown or not installed, or a setting does not fit it.
        BackendError: the engine ended or did not answer in time; the message shows the end of its log.
    """
    if kind not in get_args(Kind):
        raise SettingsError(f"engine {kind!r} is unknown; give one of {', '.join(get_args(Kind))}")
    folder = installed(kind)
    if folder is None:
        raise SettingsError(f"{kind} is not installed; run scripts/install_{'llama_server' if kind == 'llama' else 'vllm'}.sh")
    if plugin and kind != "vllm":
        raise SettingsError(f"plugin=True does not fit {kind}; it is for vllm")
    if not reasoning_parser and kind == "transformers":
        raise SettingsError("reasoning_parser=False does not fit transformers: it always parses; use vllm or llama")
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="entropy-chains-") as temporary:
        here = Path(temporary)
        if kind == "vllm":
            command = vllm_command(folder, Path(model), name, plugin, reasoning_parser, parallel)
        elif kind == "llama":
            command = llama_command(folder, here, Path(model), name, reasoning_parser, parallel)
        else:
            command = transformers_command(folder, here, Path(model), name)
        log = here / "engine.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603  # a command of ours
                [*command, "--host", "127.0.0.1", "--port", str(port), *extra],
                cwd=here,
                env=environment(plugin),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # vLLM is several processes: they are stopped as one group
            )
        engine = Engine(kind, name, f"http://127.0.0.1:{port}", log, process)
        try:
            wait_until_ready(engine, timeout)
            yield engine
        finally:
            stop(process)


def vllm_command(folder: Path, model: Path, name: str, plugin: bool, reasoning_parser: bool, parallel: int) -> list[str]:
    """``vllm serve``; ``generation-config vllm`` leaves the checkpoint's sampling defaults unread."""
    command = [str(folder / "bin" / "vllm"), "serve", str(model.resolve()), "--served-model-name", name, "--dtype", "float32"]
    command += ["--max-model-len", str(CONTEXT), "--max-num-seqs", str(parallel), "--max-logprobs", "-1", "--enforce-eager"]
    command += ["--generation-config", "vllm", "--distributed-executor-backend", "uni"]
    command += ["--reasoning-parser", "qwen3"] if reasoning_parser else []
    return command + (["--logits-processors", PLUGIN] if plugin else [])


def llama_command(folder: Path, here: Path, model: Path, name: str, reasoning_parser: bool, parallel: int) -> list[str]:
    """``llama-server``; its own sampling defaults (temperature 0.8, top-k 40, …) are set back to neutral.

    Flash attention on a CPU computes in 16 bits: logprobs of unlikely tokens are then off by 0.02. Without it, by 0.0002.
    """
    if model.is_dir():
        out = here / "model.gguf"
        converter = [sys.executable, str(ROOT / "scripts" / "hf_to_gguf.py"), str(model.resolve()), str(out)]
        done = subprocess.run(converter, capture_output=True, text=True, check=False)  # noqa: S603  # our own script
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1]
            raise SettingsError(f"{model} cannot be made a GGUF: {reason} (it needs requirements-dev.txt; or give a .gguf file)")
        model = out
    command = [str(folder / "llama-server"), "--model", str(model.resolve()), "--alias", name, "--jinja", "--metrics", "--offline"]
    command += ["--ctx-size", str(CONTEXT * parallel), "--parallel", str(parallel), "--threads", "1", "--no-ui"]
    command += ["--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"]
    command += ["--temp", "1", "--top-k", "0", "--top-p", "1", "--min-p", "0"]
    return command + ([] if reasoning_parser else ["--reasoning-format", "none"])


def transformers_command(folder: Path, here: Path, model: Path, name: str) -> list[str]:
    """``transformers serve``; it answers only to the path that it was given, so the name is made a path."""
    link = here / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(model.resolve())
    return [str(folder / "bin" / "transformers"), "serve", name, "--device", "cpu"]


def environment(plugin: bool) -> dict[str, str]:
    """Offline, on this machine only, and without compiling: torch.compile would stall the first request with logprobs."""
    made = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1", "TORCHDYNAMO_DISABLE": "1"}
    made.setdefault("OMP_NUM_THREADS", "1")
    made.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    if plugin:
        made["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return made


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def wait_until_ready(engine: Engine, timeout: float) -> None:
    """Wait for ``/health``. Raises BackendError with the end of the log."""
    deadline = time.monotonic() + timeout
    while engine.alive and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{engine.root_url}/health", timeout=5):  # noqa: S310  # loopback
            if engine.alive:  # else it was another program on that port
                return
        time.sleep(0.1)
    what = f"did not answer within {timeout:.0f} s" if engine.alive else f"ended with status {engine.process.returncode}"
    tail = "\n".join(engine.log.read_text(errors="replace").splitlines()[-30:])
    raise BackendError(f"{engine.kind} {what}; the end of its log:\n{tail}")


def stop(process: subprocess.Popen[bytes], grace: float = 10) -> None:
    """End the process's whole group, with force after ``grace`` seconds."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)


def main() -> None:
    """Run an engine in the foreground; the only line on standard output is its base URL."""
    parser = argparse.ArgumentParser(
        description="Run an engine on the bundled model until Ctrl-C; further arguments go to the engine."
    )
    parser.add_argument("kind", choices=get_args(Kind))
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="checkpoint folder (llama: or a GGUF file)")
    parser.add_argument("--name", default="demo", help="the model's name in requests (default: demo)")
    parser.add_argument("--port", type=int, default=0, help="default: one that is free")
    parser.add_argument("--parallel", type=int, default=64, help="requests that run at a time (default: 64)")
    parser.add_argument("--plugin", action="store_true", help="vllm: with this package's logits processor")
    parser.add_argument("--no-reasoning-parser", action="store_true", help="leave the thinking in the answer's text")
    given, extra = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = {"model": given.model, "name": given.name, "port": given.port, "parallel": given.parallel, "plugin": given.plugin}
    try:
        with start(given.kind, **settings, reasoning_parser=not given.no_reasoning_parser, extra=extra) as engine:
            print(engine.base_url, flush=True)
            print(f"model {engine.name!r}, log {engine.log}; Ctrl-C ends it", file=sys.stderr)
            engine.process.wait()
    except (SettingsError, BackendError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
