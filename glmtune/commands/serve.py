"""`glmtune serve`: answer programs and people over HTTP."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from glmtune.commands._arguments import TARGET_HELP, add_fetch, add_trust, trust_of
from glmtune.terminal import say
from glmtune.trust import REMEMBERED, Trust

if TYPE_CHECKING:
    from glmtune.serving.service import ModelService

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
HERE = ("127.0.0.1", "localhost", "::1")
NOT_READY = " It is served, but /ready says no, as it does not answer as it did when it was trained."
SWITCH = 5e-4  # seconds that a thread keeps Python while another wants it: what is decoded goes out at once
SMALL = 30_000_000  # parameters up to which a step is Python's work rather than that of products
BOUNDS: dict[str, tuple[float, float]] = {  # of options that are numbers: the least, and the most
    "port": (0, 65535),
    "slots": (1, math.inf),
    "max_queue": (1, math.inf),
    "max_model_len": (2, math.inf),  # a prompt, and an answer
    "max_tokens_in_flight": (1, math.inf),
    "shutdown_timeout": (0, 86400),
}
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # what one asks, of a host that is all of this machine's


@dataclass(frozen=True)
class Options:
    """How a server answers; the options of the command line."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    max_queue: int = 256
    slots: int = 16
    max_model_len: int | None = None
    max_tokens_in_flight: int | None = None
    tools: Sequence[str] = ()
    cors: Sequence[str] = ()
    allow_adapter_loading: bool = False
    log_prompts: bool = False
    shutdown_timeout: float = 30.0
    settings: Sequence[str] = field(default=())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the models, and how the server answers."""
    add = parser.add_argument
    add("targets", nargs="+", metavar="[NAME=]TARGET", help=f"{TARGET_HELP}; NAME is what clients call it")
    add("--host", default=Options.host, help="where to listen, by default %(default)s; 0.0.0.0: everywhere")
    add("--port", type=int, default=Options.port, help="where to listen; default: %(default)s")
    add("--api-key-file", type=Path, help="a file of keys, one a line; who asks gives one of them")
    add("--max-queue", type=int, default=Options.max_queue, help="requests that may wait; default: %(default)s")
    add("--slots", type=int, default=Options.slots, help="answers at a time, of each model; default: %(default)s")
    add("--max-model-len", type=int, help="tokens of prompt and answer together; default: all the model takes")
    add("--max-tokens-in-flight", type=int, help="tokens of all prompts and answers at a time; default: as slots have")
    add("--tools", nargs="+", default=(), metavar="TOOL", help="run here when models call them, e.g. calculator")
    add("--cors", nargs="+", default=(), metavar="ORIGIN", help="pages of these origins may ask from a browser")
    add("--allow-adapter-loading", action="store_true", help="adapters may be loaded and unloaded over HTTP")
    add("--log-prompts", action="store_true", help="write prompts and answers to the log")
    seconds = "seconds for answers at the end; default: %(default)g"
    add("--shutdown-timeout", type=float, default=Options.shutdown_timeout, help=seconds)
    add("--set", dest="settings", nargs="+", default=(), metavar="SETTING", help="settings in place of the runs' own")
    add_trust(parser)
    add_fetch(parser)
    parser.set_defaults(fetch=False)


def main(options: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    from glmtune.libraries import quiet_libraries

    quiet_libraries()
    given = {name: value for name, value in vars(options).items() if name in Options.__dataclass_fields__}
    code = run(options.targets, Options(**given), trust_of(options))
    if code:
        sys.exit(code)


def run(targets: Sequence[str], options: Options = Options(), trust: Trust = REMEMBERED) -> int:
    """Load the models, see whether they answer as their reports say, and answer; return the exit code.

    Raises:
        UserError: no such model or tool, two models of one name, no keys in the file, a number out of its bounds, an
            address that cannot be had, or `glmtune[serve]` is missing.
    """
    from glmtune.runtime import UserError

    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"The server needs {' and '.join(missing)}: pip install 'glmtune[serve]'")
    from glmtune.serving.app import make_app
    from glmtune.serving.asking import Access, Limits
    from glmtune.serving.serving import make_server, serve

    check_numbers(options)
    keys = read_keys(options.api_key_file)
    check_address(options.host, options.port)
    service = load_models(targets, options, trust)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    limits = Limits()
    hosts = HERE if options.host in HERE and not keys else ()  # who has a key, or opens it to others, may name it
    access = Access(keys, hosts, options.cors, options.allow_adapter_loading, options.log_prompts)
    service.start()
    announce(service, options)
    floor = service.worker.floor if is_small(service) else None
    app = make_app(service, limits, access)
    server = make_server(app, service, options.host, options.port, limits, options.shutdown_timeout, floor)
    try:
        return serve(server)
    finally:
        service.close()


def check_numbers(options: Options) -> None:
    """See whether a server can be of such sizes.

    Raises:
        UserError: it cannot.
    """
    from glmtune.runtime import UserError

    for name, (least, most) in BOUNDS.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            allowed = f"{least} or more" if most == math.inf else f"{least} to {most}"
            raise UserError(f"--{name.replace('_', '-')} {value}: give {allowed}.")


def check_address(host: str, port: int) -> None:
    """See whether a server can listen somewhere, before models are loaded for it.

    Raises:
        UserError: it cannot.
    """
    from glmtune.runtime import UserError

    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}. Choose another one.") from error


def load_models(targets: Sequence[str], options: Options, trust: Trust) -> ModelService:
    """Return a service of all models, each looked at; it has not been started.

    Raises:
        UserError: no such model or tool, or two models of one name.
    """
    import torch

    from glmtune import registry
    from glmtune.resolution import resolve
    from glmtune.runtime import UserError
    from glmtune.serving.service import ModelService, Sizes

    named = name_models(targets)
    resolved = {name: resolve(target, options.settings, trust) for name, target in named.items()}
    known = registry.names("glmtune.tools")
    if unknown := [tool for tool in options.tools if tool not in known]:
        raise UserError(f"--tools: no such tool: {unknown[0]}.{registry.suggest(unknown[0], known)}")
    tools = [registry.find("glmtune.tools", tool)() for tool in options.tools]
    sizes = Sizes(options.slots, options.max_queue, options.max_model_len, options.max_tokens_in_flight)
    cores = torch.get_num_threads()
    # A small model leaves one to the clients: threads of a product that wait for one that waits for a core only wait.
    torch.set_num_threads(max(1, cores - 1))
    sys.setswitchinterval(SWITCH)
    service = ModelService(sizes, tools, settings=options.settings)
    for name, model in resolved.items():
        say(f"loading {name} ...", error=True)
        found = service.check(service.add(name, model))
        if found is not None:
            say(f"{name}: {found}.{'' if found.holds else NOT_READY}", error=True)
        elif remark := service.served[name].info.remark:
            say(f"{name}: {remark}.", error=True)
    if not is_small(service):
        torch.set_num_threads(cores)
    return service


def is_small(service: ModelService) -> bool:
    """Whether to decode is Python's work for all models of a service."""
    return max(served.engine.model.num_parameters() for served in service.served.values()) <= SMALL


def name_models(targets: Sequence[str]) -> dict[str, str]:
    """Return what was named by what clients call it: the NAME before a `=`, else the last part of a path.

    Raises:
        UserError: two have one name.
    """
    from glmtune.runtime import UserError

    named: dict[str, str] = {}
    for given in targets:
        name, equals, target = given.partition("=")
        if not equals or "/" in name:  # a path may hold one, too
            name, target = Path(given).stem if given.endswith(".gguf") else Path(given).name or given, given
        if name in named:
            raise UserError(f"{given}: {name} is the name of {named[name]} already. Choose another: NAME={target}")
        named[name] = target
    return named


def read_keys(file: Path | None) -> list[str]:
    """Return the keys in a file, one a line.

    Raises:
        UserError: there is none.
    """
    from glmtune.runtime import UserError

    if file is None:
        return []
    try:
        keys = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file {file}: cannot be read: {error}") from error
    if not keys:
        raise UserError(f"--api-key-file {file}: holds no key. Write one a line.")
    return keys


def announce(service: ModelService, options: Options) -> None:
    """Say where the server is, what it serves, and how to ask."""
    address = f"http://{EVERYWHERE.get(options.host, options.host)}:{options.port}"
    models = service.models()
    say(f"page        {address}/")
    say(f"OpenAI      {address}/v1")
    say(f"models      {', '.join(model.name for model in models)}")
    body = {"model": models[0].name, "messages": [{"role": "user", "content": "57.84+13.64="}]}
    key = " -H 'Authorization: Bearer KEY'" if options.api_key_file else ""
    say(f"curl {address}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'")
    if options.host not in HERE and not options.api_key_file:
        say("Everyone who reaches this machine may ask. To ask for a key: --api-key-file FILE", error=True)
