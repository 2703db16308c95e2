"""The app: the same prompt through streamed, resident and quantized variants, side by side in a browser.

This process only shows results. Models run in `layerstream_compare`'s workers and are profiled in a child
process. It loads no torch, so its memory stays small and does not grow.
"""

import os

# set before gradio or huggingface_hub is imported: neither may report that the app was started
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
