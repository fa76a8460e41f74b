"""Alembic environment: always runs on the connection that ``archive.migrate.upgrade`` holds."""

from alembic import context

from dicomnode.archive.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=False,  # the caller's transaction is the one
)
context.run_migrations()
