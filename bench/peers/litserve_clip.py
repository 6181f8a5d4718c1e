"""The same model in LitServe, with its batching as its documentation recommends, at the stack's precision."""

import base64
import io
import os
import sys

import litserve
import open_clip
import torch
from PIL import Image

DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[os.environ["PRECISION"]]


class Clip(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        model, _, self.preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=os.environ["WEIGHTS"])
        self.model = model.eval().to(device, DTYPE)

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        picture = Image.open(io.BytesIO(base64.b64decode(request["image"])))
        inputs: torch.Tensor = self.preprocess(picture.convert("RGB"))
        return inputs

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    def predict(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            features: torch.Tensor = self.model.encode_image(batch.to(DTYPE), normalize=True)
            return features.float()

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict[str, list[float]]:
        return {"vector": output.tolist()}


if __name__ == "__main__":
    api = Clip(max_batch_size=32, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu").run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False)
