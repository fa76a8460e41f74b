"""excluded patients are found without reading all of them"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_patients_excluded",
        "patients",
        ["pseudonym"],
        unique=False,
        sqlite_where=sa.text("excluded = 1"),
        postgresql_where=sa.text("excluded"),
    )


def downgrade() -> None:
    op.drop_index("ix_patients_excluded", table_name="patients")
