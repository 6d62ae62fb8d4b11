"""World models behind one interface: observe into them, imagine forward."""
