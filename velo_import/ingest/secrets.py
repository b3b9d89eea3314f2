# SPDX-License-Identifier: Apache-2.0
"""What looks like a secret: keys, passwords and tokens, told by their names and by how they begin.

Knows the names that tools give to their credentials, and the first lines of private keys; which trees are
looked at is plan.py's to say. The surprise: packages bring files with such names that are none (certifi's
certificates are called cacert.pem), so these rules are for people's own trees.
"""

from __future__ import annotations

import re

# Compared in lower case.
_NAMES = """.env .envrc .netrc _netrc .npmrc .pypirc .htpasswd .pgpass .my.cnf .s3cfg .boto .dockercfg
    .vault-token .git-credentials .terraformrc credentials credentials.json
    application_default_credentials.json kubeconfig accesstokens.json msal_token_cache.json
    msal_token_cache.bin secrets.json secrets.yaml secrets.yml secrets.toml id_rsa id_dsa id_ecdsa
    id_ecdsa_sk id_ed25519 id_ed25519_sk"""
_SUFFIXES = ".pem .key .p8 .p12 .pfx .jks .keystore .kdbx .ppk .agekey .tfstate .tfstate.backup"
NAMES, SUFFIXES = frozenset(_NAMES.split()), tuple(_SUFFIXES.split())
# `.env.production` is a secret; these are what people show instead of one.
_ENV = ".env."
_SHOWN_INSTEAD = (".example", ".sample", ".template", ".dist")
_FOLDERS = frozenset((".ssh", ".gnupg", ".secrets"))
# Not the whole folders: projects keep their pipelines in some of the same name.
_PATHS = ("/.aws/credentials", "/.docker/config.json", "/.kube/config")

_BEGINNING = 4096
_KEY = re.compile(
    rb"\s*(?:-----BEGIN [A-Z0-9 ]*PRIVATE KEY"
    rb"|PuTTY-User-Key-File-"
    rb"|(?:#[^\n]*\n)*AGE-SECRET-KEY-"
    rb'|\{[^{}]*"private_key":\s*"-----BEGIN )'  # How Google hands out its service accounts.
)


def is_secret(path: str) -> bool:
    """Whether a path, or any folder in it, has a name that credentials have. Pass it without what leads to
    the tree: a project below `~/.secrets` is none for that."""
    path = path.lower()
    *folders, name = path.split("/")
    if not _FOLDERS.isdisjoint(folders):
        return True
    if name.startswith(_ENV):
        return not name.endswith(_SHOWN_INSTEAD)
    return name in NAMES or name.endswith(SUFFIXES) or f"/{path}".endswith(_PATHS)


def is_key(content: bytes) -> bool:
    """Whether a file begins as private keys do, whatever its name."""
    return _KEY.match(content, 0, _BEGINNING) is not None
