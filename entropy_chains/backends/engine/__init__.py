"""A plug-in's parts that know no engine."""
