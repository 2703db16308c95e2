"""The app: the same prompt through streamed, resident and quantized variants, side by side in a browser.

It shows and never computes: models run in `layerstream_compare`'s workers, plans are made in a child of their own. This process
loads no torch, so that its memory stays small and flat.
"""

import os

# before anything imports gradio or huggingface_hub: the page and its server tell nobody that they were opened
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
