"""What pydantic says of a configuration, in one line: the key's path, what was given, what is allowed."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ..addresses import public
from .names import nearest
from .settings import Config, Experiment


def message(name: str, error: ValidationError) -> str:
    """The first of pydantic's errors in one line: key, what was given, what is allowed."""
    # A misspelt key is unknown, and the one that was meant is missing: the first of the two says more.
    errors = sorted(error.errors(), key=lambda e: e["type"] == "missing")
    # Of the ways to write a generator, a VAE or a metric, a mapping was meant where one was given.
    mapping = [e for e in errors if {"Frozen", "Hub", "References", "Metrics"} & set(e["loc"])]
    first = next((e for e in mapping if isinstance(errors[0]["input"], dict)), errors[0])
    kinds = {"mlp", "unet", "mse", "pseudo_huber", "pseudo_huber_norm", "Frozen", "Hub"}
    kinds |= {"Name", "Comparison", "Claim", "References", "Metrics", "constrained-str"}
    data = {"digits", "mixture", "fashion", "cifar10", "imagenet32", "images", "captions"}
    tags = kinds | data | {"classifier", "efficientnet-lite0", "inception-v3", "dinov2", "clip"}
    # pydantic puts the variant of a union into the path: where a mapping's kind says it, no key of the user's.
    location = [
        str(part)
        for number, part in enumerate(first["loc"])
        if not (number and error.title == "Experiment" and part in tags) and not str(part).startswith("function-")
    ]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        allowed = _keys_at(error.title, first["loc"][:-1])
        return f"{name}: {key}: unknown key; allowed here: {', '.join(allowed)}{nearest(location[-1], allowed)}"
    if first["type"] == "missing":
        return f"{name}: {key}: required key is missing"
    if first["type"] == "union_tag_not_found":
        return f"{name}: {key}.kind: required key is missing"
    if first["type"] == "union_tag_invalid":
        tag, words = first["ctx"]["tag"], [word.strip("'") for word in first["ctx"]["expected_tags"].split(", ")]
        return f"{name}: {key}.kind: {_shown(tag)} is not allowed; allowed: {', '.join(words)}{nearest(tag, words)}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "allowed:")
    if allowed := first.get("ctx", {}).get("expected"):
        words = [word.strip("'") for word in str(allowed).replace(" or ", ", ").split(", ")]
        message += nearest(str(first["input"]), words)
    return f"{name}: {key}: {_shown(first['input'])} is not allowed; {message}"


def _shown(value: Any) -> str:
    """A value in a message; the beginning of a long one, and no login or query of an address."""
    if isinstance(value, str) and "://" in value:
        value = "".join(value.split())  # a password may hold spaces
    text = public(repr(value))
    return text if len(text) <= 200 else f"{text[:200]}…"


def _keys_at(title: str, location: tuple) -> list[str]:
    """The keys that the model at this place of the configuration has."""
    schema = {"Experiment": Experiment, "Config": Config}[title].model_json_schema()
    node: dict[str, Any] = schema
    for part in location:
        node = _resolve(schema, node, str(part))
        if isinstance(part, int):
            node = node.get("items", node)
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        elif isinstance(node.get("additionalProperties"), dict):
            node = node["additionalProperties"]
    return list(_resolve(schema, node, "").get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any], tag: str) -> dict[str, Any]:
    """Follow references; of a union take the variant with this tag, else the first."""
    while True:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif "oneOf" in node or "anyOf" in node:
            mapping = node.get("discriminator", {}).get("mapping", {})
            options = node.get("oneOf", node.get("anyOf"))
            named = (option for option in options if option.get("$ref", "").endswith(f"/{tag}"))
            node = {"$ref": mapping[tag]} if tag in mapping else next(named, options[0])
        else:
            return node
