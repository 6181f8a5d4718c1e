"""Run as a process: loads a BLIP model from a hub of its own, with and without that hub, and prints what came of it.

The first argument is a folder with a BLIP model.
"""

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clip_hub import make_hub


def main() -> None:
    tokens: list[str] = []
    hub = make_hub(Path(sys.argv[1]), tokens)
    with TemporaryDirectory() as home:
        os.environ["HF_HOME"] = home
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"

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

        results = {"gated": load("here/gated"), "online": load("here/model"), "tokens": sorted(set(tokens))}
        hub.shutdown()
        hub.server_close()
        results |= {"offline": load("here/model"), "unreachable": load("here/other")}
        print(json.dumps(results))


if __name__ == "__main__":
    main()
