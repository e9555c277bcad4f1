"""A small procedurally generated world of things that are seen and heard.

Everything can be run, tested and demonstrated in it offline. Objects are drawn and sounds synthesised; some classes
look alike and differ in sound, others sound alike and differ in looks, so that neither sense suffices alone.
"""
