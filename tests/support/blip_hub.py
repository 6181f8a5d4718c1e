"""Run as a process: loads a BLIP model from a hub of its own, with and without that hub, and prints what came of it.

The first argument is a folder with a BLIP model.
"""

import json
import sys
from pathlib import Path

import numpy as np

from loopback_hub import LoopbackHub, hub_with_empty_cache


def main() -> None:
    with hub_with_empty_cache(Path(sys.argv[1])) as (hub, _):
        print(json.dumps(try_all(hub)))


def try_all(hub: LoopbackHub) -> dict[str, object]:
    from blip_service.model import BlipModel, CaptionKey
    from blip_service.settings import BlipSettings
    from visionstack.model_service import ModelLoadError

    def load(name: str) -> object:
        settings = {"blip_model": name, "huggingface_token": "hf_secret", "device": "cpu", "precision": "fp32"}
        model = BlipModel(BlipSettings.model_validate(settings))
        try:
            model.load()
        except ModelLoadError as exc:
            return str(exc)
        (captions,) = model.predict(CaptionKey(2, 20), [np.zeros((90, 120, 3), np.uint8)])
        return [caption.model_dump() for caption in captions]

    results = {"gated": load("here/gated"), "online": load("here/model"), "tokens": sorted(set(hub.tokens))}
    asked = len(hub.tokens)
    results |= {"cached": load("here/model"), "asked again": len(hub.tokens) - asked}
    hub.close()
    return results | {"offline": load("here/model")}


if __name__ == "__main__":
    main()
