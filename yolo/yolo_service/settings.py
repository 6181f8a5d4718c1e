"""What the yolo service reads from the environment besides what every model service reads."""

from pathlib import Path

from pydantic import Field

from visionstack.settings import ModelSettings, Runtime


class YoloSettings(ModelSettings):
    """Every field is an environment variable of the same name in capitals."""

    # a file, or the name of a checkpoint that ultralytics publishes
    yolo_model: str = Field("yolo11n.pt", min_length=1)
    runtime: Runtime = "torch"
    # published checkpoints are looked for here, and downloaded to here
    weights_dir: Path = Path("data/weights")
