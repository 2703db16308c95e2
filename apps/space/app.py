"""What a Hugging Face Space starts."""

from layerstream_space.space import space_page
from layerstream_space.ui.page import launch_options

demo = space_page()

if __name__ == "__main__":
    demo.launch(**launch_options())
