"""What ``deploy/`` says, as Python values: for the tests that hold it to its word."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.core
import typer.main
import yaml

from speechmill.cli.app import app
from speechmill.job import Job, load_job
from speechmill.queues.options import WorkOptions
from speechmill.queues.run import OF_SINK

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = tuple(
    path for path in sorted(DEPLOY.glob("kubernetes/*.yaml")) if path.stem != "kustomization"
)

Yaml = Mapping[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod's template: its metadata and spec, and in which file and object it stands."""

    where: str
    metadata: Yaml
    spec: Yaml

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""
        labels = self.metadata["labels"]
        assert isinstance(labels, Mapping)
        return labels

    @property
    def container(self) -> Yaml:
        """Its only container."""
        (container,) = self.spec["containers"]
        assert isinstance(container, Mapping)
        return container

    @property
    def words(self) -> list[str]:
        """What the container is given to run, below the image's entry point."""
        return list(self.container.get("args", ()))


def documents(path: Path) -> list[Yaml]:
    """The objects of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def objects() -> Iterator[Yaml]:
    """All objects of all manifests."""
    for path in MANIFESTS:
        yield from documents(path)


def _templates(value: Any) -> Iterator[Yaml]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            if key == "template":
                yield below
            else:
                yield from _templates(below)
    elif isinstance(value, list):
        for below in value:
            yield from _templates(below)


def pods() -> list[Pod]:
    """The pods of all manifests, those within Ray's objects as well."""
    return [
        Pod(f"{path.name} {each['metadata']['name']} {number}", t["metadata"], t["spec"])
        for path in MANIFESTS
        for each in documents(path)
        for number, t in enumerate(_templates(each))
    ]


def jobs() -> list[Yaml]:
    """The Jobs of Kubernetes itself."""
    return [each for each in objects() if each["kind"] == "Job"]


def commands() -> dict[str, list[str]]:
    """Every command line of Speechmill in the manifests, in compose.yaml, and what the README puts
    into a manifest instead, by where it stands."""
    found = {pod.where: pod.words for pod in pods() if pod.words[:1] in (["build"], ["work"])}
    found["README.md RabbitMQ"] = words_for_rabbitmq()
    for each in objects():
        if each["kind"] == "RayJob":
            program, *words = shlex.split(each["spec"]["entrypoint"])
            assert program == "speechmill"
            found[each["metadata"]["name"]] = words
    (compose,) = documents(DEPLOY / "compose.yaml")
    found["compose.yaml"] = compose["services"]["build"]["command"]
    return found


def words_for_rabbitmq() -> list[str]:
    """What the README puts into worker.yaml for RabbitMQ."""
    (block,) = re.findall(r"```yaml\n(args:.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    words = yaml.safe_load(block)["args"]
    assert isinstance(words, list)
    return words


def given_flags(words: list[str]) -> dict[str, Any]:
    """What ``speechmill WORDS`` is told, read by the command line's own parser.

    Raises:
        KeyError: there is no such command.
        Exception: there is no such flag, or a value is none of its; the parser's own.
    """
    name, *rest = words
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    flags = group.commands[name].make_context(name, rest).params
    return {key: value for key, value in flags.items() if value not in (None, [], ())}


def job_of(words: list[str], index: int = 0) -> Job:
    """The job that ``speechmill WORDS`` runs; of a worker, all but its ``WorkOptions``.

    ``index`` is what Kubernetes puts for ``$(JOB_COMPLETION_INDEX)``.

    Raises:
        JobError: the flags make no sense together.
        Exception: those of ``given_flags``.
    """
    given = given_flags([word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in words])
    if words[0] == "work":
        given = {key: value for key, value in given.items() if key not in WorkOptions.model_fields}
        given.setdefault("source", OF_SINK)
    return load_job(given.pop("config", None), given)


def work_options_of(words: list[str]) -> WorkOptions:
    """What the worker that ``speechmill WORDS`` starts is told besides its job.

    Raises:
        JobError: the flags make no sense.
        Exception: those of ``given_flags``.
    """
    given = given_flags(words)
    return WorkOptions(**{k: v for k, v in given.items() if k in WorkOptions.model_fields})


def instructions(path: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, in order: name and rest, in one line each."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines if line.strip()]
