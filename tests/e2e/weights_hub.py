"""Run in a container, beside `model_hub.py`: the bundled models, given out as Hugging Face and GitHub give out theirs.

Arguments: the folder of the models, the certificate for github.com, its key. Of Hugging Face there are `here/clip` and
`here/blip`, which need the token `hf_secret`, on port 8000; of GitHub there is yolo11n.pt, on port 443.
"""

import re
import ssl
import sys
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from model_hub import GATED, NO_FILE, Answer, hub_handler


def main() -> None:
    models, certificate, key = sys.argv[1:]

    def find(path: str, authorization: str) -> Answer:
        if re.fullmatch(r"/ultralytics/assets/releases/download/[^/]+/yolo11n\.pt", path):
            return Answer(200, content=Path(models, "yolo.pt").read_bytes(), name="yolo")
        named = re.fullmatch(r"/here/(clip|blip)/resolve/main/([\w.]+)", path)
        if named is None:
            return NO_FILE
        if authorization != "Bearer hf_secret":
            return GATED
        file = Path(models, named[1], named[2])
        return Answer(200, content=file.read_bytes(), name=f"{named[1]}-{file.name}") if file.is_file() else NO_FILE

    plain = ThreadingHTTPServer(("", 8000), hub_handler(find))
    secured = ThreadingHTTPServer(("", 443), hub_handler(find))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    secured.socket = context.wrap_socket(secured.socket, server_side=True)
    Thread(target=plain.serve_forever, daemon=True).start()
    secured.serve_forever()


if __name__ == "__main__":
    main()
