"""Many models, evaluated and differentiated at once."""
