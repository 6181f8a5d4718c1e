"""The README is true: each of its `curl` lines is run against the real stack, and every route has one."""

import os
import re
import subprocess
from pathlib import Path

import httpx2
import pytest

from image_host import ImageHost
from local_stack import ROOT, Stack
from scenes import webp

README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
EXAMPLE_URL = re.compile(r"https://files\.skinbase\.org(/[\w/.]+)")


def route_of(command: str) -> tuple[str, str]:
    """The method and path that a command asks."""
    method = re.search(r"-X (\w+)", command)
    path = re.search(r"\$VISION_URL(/[^\s?\"']*)", command)
    assert path is not None, command
    return (method[1] if method else "GET").lower(), path[1]


def matches(path: str, template: str) -> bool:
    return re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^?]+", re.escape(template)), path) is not None


def test_every_public_route_has_a_curl_and_every_curl_a_route(stack: Stack) -> None:
    paths = httpx2.get(f"{stack.url}/openapi.json", trust_env=False).json()["paths"]
    routes = {
        (method, template)
        for template, operations in paths.items()
        for method in operations
        if template not in ("/livez", "/readyz")
    }
    shown = {route_of(command) for command in COMMANDS}
    unshown = {
        (method, template)
        for method, template in routes
        if not any(m == method and (p == template or ("{" in template and matches(p, template))) for m, p in shown)
    }
    unknown = {
        (method, path)
        for method, path in shown
        if not any(m == method and (path == t or ("{" in t and matches(path, t))) for m, t in routes)
    }
    assert (unshown, unknown) == (set(), set())


def test_every_curl_works_in_the_order_of_the_page(stack: Stack, image_host: ImageHost, tmp_path: Path) -> None:
    (tmp_path / ".curlrc").write_text("silent\nshow-error\nfail-with-body\nnoproxy = *\n")
    environment = {"PATH": os.environ["PATH"], "CURL_HOME": str(tmp_path), "HOME": str(tmp_path)} | {
        "VISION_URL": stack.url,
        "API_KEY": stack.key,
    }
    stack.wait_ready(60)
    assert len(COMMANDS) > 25
    for number, command in enumerate(COMMANDS):
        for path in EXAMPLE_URL.findall(command):
            image_host.put(path, webp(60 + number), "image/webp")
        local = EXAMPLE_URL.sub(lambda found: image_host.url(found[1]), command)
        done = subprocess.run(
            ["bash", "-c", local], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.startswith(("{", "[")), command


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/docker.md"])
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
