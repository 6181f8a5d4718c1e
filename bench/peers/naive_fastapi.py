"""The server that one writes in an afternoon: FastAPI, a `def` endpoint, the model at import, one request at a time."""

import os

import open_clip
import torch
from fastapi import FastAPI, UploadFile
from PIL import Image

model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=os.environ["WEIGHTS"])
model.eval()
app = FastAPI()


@app.get("/readyz")
def ready() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/embed")
def embed(file: UploadFile) -> dict[str, list[float]]:
    picture = preprocess(Image.open(file.file).convert("RGB")).unsqueeze(0)
    with torch.no_grad():
        features = model.encode_image(picture)
        features /= features.norm(dim=-1, keepdim=True)
    return {"vector": features[0].tolist()}
