"""MLflow's model registry: which pruned models a team has taken on, and which of them its aliases name.

The versions of a registered model are checkpoints, each registered once: the logged model of its digest. An alias such
as `production` names one version of a model at a time.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from moeprune.errors import BadInput, one_line
from tasks.taking_turns import alone
from tasks.tracked import LoggedModel, short
from tasks.tracking import Tracker

DIGEST, KIND, MODEL, RUN = "sha256", "kind", "model_id", "run_id"
"""Tags of a version: a database without a server keeps no id of the logged model beside its source."""
VERSIONS = "mlflow.modelVersions"
"""The tag of a logged model by which MLflow's pages lead from it to its versions."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: int
    digest: str
    """Of the checkpoint; of what no run of ours made, this and the next three are empty."""
    kind: str
    """pruned or distilled."""
    model: str
    """The id of its logged model."""
    run: str
    """The run by which an alias came to it last, or that it was registered for."""
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"


class Registry:
    """The registry of a tracker: on the same server, or in the same database."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._client = MlflowClient(tracking_uri=tracker.uri, registry_uri=tracker.uri)

    def versions(self, name: str | None = None) -> list[Version]:
        """All that are registered, or those of one model, newest first."""
        found = [self._version(one) for one in _all(self._client.search_model_versions)]
        # A search tells a version's tags, but not its aliases. A model may be deleted between the two.
        held = {
            model.name: {alias: int(number) for alias, number in model.aliases.items()}
            for model in _all(self._client.search_registered_models)
        }
        found = [
            replace(one, aliases=tuple(alias for alias, at in held.get(one.name, {}).items() if at == one.number))
            for one in found
        ]
        return sorted(
            (one for one in found if name in (None, one.name)), key=lambda one: (one.name, one.number), reverse=True
        )

    def holder(self, name: str, alias: str) -> Version | None:
        """The version that has an alias, or None. Raises BadInput for a name that no model can have."""
        try:
            model = self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise BadInput(f"'{name}' is no name of a registered model: {one_line(error)}") from error
            raise
        return self._holder(name, alias) if alias in model.aliases else None

    def register(self, name: str, model: LoggedModel, run: str) -> Version:
        """The version of this checkpoint, made if there is none. `name` is made, too."""
        with self._alone():
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            for known in self.versions(name):
                if known.digest == model.digest:
                    return known
            tags = {DIGEST: model.digest, KIND: model.kind, MODEL: model.id, RUN: run}
            with _asked(self._tracker.uri):
                made = self._client.create_model_version(
                    name, f"models:/{model.id}", run_id=run, tags=tags, model_id=model.id
                )
            version = self._version(made)
            self._link(model.id, version)
            return version

    def _link(self, model_id: str, version: Version) -> None:
        links = json.loads(self._client.get_logged_model(model_id).tags.get(VERSIONS, "[]"))
        own = {"name": version.name, "version": version.number}
        if own not in links:  # a server has made it
            self._client.set_logged_model_tags(model_id, {VERSIONS: json.dumps([*links, own])})

    def move(self, alias: str, version: Version, run: str, record: Mapping[str, Any]) -> tuple[Version, Version | None]:
        """Have an alias name this version from now on; returned with the version that it named before.

        `record` is kept with the version, as its tag promoted.<alias>, and the number of that before in it.
        """
        with self._alone():
            before = self.holder(version.name, alias)
            self._client.set_registered_model_alias(version.name, alias, str(version.number))
            text = json.dumps({**record, "before": before and before.number})
            for key, value in short({RUN: run, f"promoted.{alias}": text}).items():
                self._client.set_model_version_tag(version.name, str(version.number), key, value)
            return self._holder(version.name, alias), before

    def _alone(self) -> AbstractContextManager[None]:
        return alone(self._tracker.store, self._tracker.uri, "mlflow-registry")

    def _holder(self, name: str, alias: str) -> Version:
        return self._version(self._client.get_model_version_by_alias(name, alias))

    def _version(self, found: Any) -> Version:
        tags = dict(found.tags)
        known = tags if MODEL in tags else {**self._by_hand(str(found.source)), **tags}
        digest, kind, model, run = (known.get(name, "") for name in (DIGEST, KIND, MODEL, RUN))
        return Version(found.name, int(found.version), digest, kind, model, run, tuple(found.aliases), tags)

    def _by_hand(self, source: str) -> dict[str, str]:
        """Of a version that somebody registered in MLflow's pages, what its logged model tells."""
        name = source.removeprefix("models:/")
        if not name.startswith("m-"):  # files of anything, or a version of a registered model
            return {}
        try:
            model = self._client.get_logged_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        if "sha256" not in model.params:
            return {}
        return {
            DIGEST: model.params["sha256"],
            KIND: model.tags["kind"],
            MODEL: str(model.model_id),
            RUN: str(model.source_run_id),
        }


def _all(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        if not (token := page.token):
            return


@contextmanager
def _asked(uri: str) -> Iterator[None]:
    """Meanwhile MLflow looks a logged model up there: in a database it asks the process' default, not the client's."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before
