"""The method: reflection, ranking, curriculum."""
