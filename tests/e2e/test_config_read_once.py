"""``sidecar serve`` reads its configuration once: what was checked is what the workers get."""

from __future__ import annotations

import os
import threading

import numpy as np

from tests.e2e.support import Client, await_ready, launch, variant, write
from tests.support import models


def test_it_serves_what_a_pipe_gave_once(tmp_path):
    models.onnx_mlp(tmp_path)
    served = [{"name": "mlp", "variants": [variant("onnx", tmp_path / "mlp.onnx")]}]
    text = write(tmp_path, served, name="text.yaml").read_bytes()
    pipe = tmp_path / "sidecar.yaml"  # a second reading would wait for a writer for ever
    os.mkfifo(pipe)
    server = launch(pipe)
    try:
        threading.Thread(target=pipe.write_bytes, args=(text,), daemon=True).start()
        await_ready(server)
        with Client(server.addresses["grpc"]) as client:
            assert client.infer("mlp", np.zeros((1, 32), np.float32)).model_name == "mlp"
        server.signal()
        assert server.wait() == 0
    finally:
        server.kill()
