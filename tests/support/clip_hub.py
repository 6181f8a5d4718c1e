"""Run as a process: loads CLIP models from a hub of its own, once more without it, and prints what came of it.

The first argument is a folder with an open_clip model.
"""

import json
import sys
from pathlib import Path

from loopback_hub import LoopbackHub, hub_with_empty_cache


def main() -> None:
    with hub_with_empty_cache(Path(sys.argv[1])) as (hub, home):
        print(json.dumps(try_all(hub, home)))


def try_all(hub: LoopbackHub, folder: Path) -> dict[str, object]:
    from clip_service.model import ClipModel
    from clip_service.settings import ClipSettings
    from visionstack.model_service import ModelLoadError

    def load(name: str, **more: str) -> object:
        model = ClipModel(
            ClipSettings.model_validate(
                {"clip_model": name, "clip_tags_file": folder / "tags.txt", "cache_dir": folder / "cache", **more}
            )
        )
        try:
            model.load()
        except ModelLoadError as exc:
            return str(exc)
        return [model.identity, *model.predict("text", ["a castle"])[0][:4].tolist()]

    (folder / "tags.txt").write_text("castle\n")
    results = {
        "gated": load("hf-hub:here/gated"),
        "unknown": load("hf-hub:here/nothing"),
        "online": load("hf-hub:here/model", huggingface_token="hf_secret"),
        "tokens": sorted(set(hub.tokens)),
    }
    asked = len(hub.tokens)
    results |= {"cached": load("hf-hub:here/model"), "asked again": len(hub.tokens) - asked}
    hub.close()
    return results | {"hub gone": load("hf-hub:here/model")}


if __name__ == "__main__":
    main()
