"""What the ceilings run: copies of the service's own code, as commit dd32f38 has it.

They stay as they are. A ceiling that imported the service would become faster with it, and the ratios would hide that.
Behaviour that no request of the benchmark meets is left out.
"""
