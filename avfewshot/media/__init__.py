"""Media files as clips: one picture and one second of sound for each second.

`discover` finds files, `reader` reads one, `stream` reads many ahead of the model.
"""
