"""What the server of tests/server.py imports last, before it forks."""

import gc
import io

from matplotlib.figure import Figure

Figure().add_subplot().figure.savefig(io.BytesIO(), format="png")  # imports what a picture needs
gc.collect()
gc.freeze()  # else the first collection in each process copies the memory that it shares with the server
