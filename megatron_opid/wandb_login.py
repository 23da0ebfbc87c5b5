"""Whether Weights & Biases would find a key here, without importing it: that takes a second and starts its service.

It looks where `wandb.init` does: the environment, netrc, the settings file that `wandb login --host` writes.
"""

from __future__ import annotations

import configparser
import netrc
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

PUBLIC_HOST = "https://api.wandb.ai"


def login_faults(mode: str, environment: Mapping[str, str]) -> list[str]:
    """Why a run with `run.wandb=mode` could not log in; no key is ever part of it."""
    if mode != "online" or environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return []
    settings = _settings(environment)
    url = environment.get("WANDB_BASE_URL") or settings.get("base_url") or PUBLIC_HOST
    host, path = urlsplit(url).netloc, _netrc_path(environment)
    if settings.get("api_key") or _has_password(path, host):
        return []
    return [
        f"run.wandb=online: there is no key for {host}, neither in WANDB_API_KEY nor in {path}; call wandb login, set "
        "WANDB_API_KEY, or run.wandb=offline"
    ]


def _settings(environment: Mapping[str, str]) -> Mapping[str, str]:
    directory = Path(environment.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(directory / "settings")
    except (configparser.Error, OSError, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def _netrc_path(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("NETRC") or "~/.netrc").expanduser()


def _has_password(path: Path, host: str) -> bool:
    try:
        login = netrc.netrc(path).authenticators(host)
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
        return False
    return login is not None and bool(login[2])
