# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ask a table
#
# A model of a table is trained once, on a data frame as it is: strings, integers, amounts, gaps.
# Then it answers any question in the table's own names and units. The table here has 32,561
# persons of the census of the USA in 1994 ("Adult"). Training takes two minutes on two cores.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pyromix.datasets import adult
from pyromix.tables import Schema, TableModel, col, plot_missing

OUT = Path("out")
OUT.mkdir(exist_ok=True)
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 10})
pd.set_option("display.width", 140)
pd.set_option("display.max_columns", 20)

# %%
people = adult()
order = np.random.default_rng(0).permutation(len(people))
train, test = people.iloc[order[3000:]], people.iloc[order[:3000]]
schema = Schema.infer(people)
model = TableModel.fit(train, schema, time_budget=120, seed=0, progress_bar=False)
schema

# %% [markdown]
# The schema says what each column was taken for. Another kind can be given by name:
# `Schema.infer(people, age=integer())`.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
plot_missing(people.sample(1500, random_state=0), axes[0])
axes[0].set_title("what is missing, in 1,500 rows")
model.plot_dependence(axes[1])
axes[1].set_title("how much columns tell of each other")
figure.tight_layout()
figure.savefig(OUT / "table_dependence.png")

# %% [markdown]
# ## Ten questions
#
# An event is written with names, and every answer is a sum over all that the model knows: no
# draws, no error. Beside it is what counting says, where there are rows to count.


# %%
def counted(event, given=None):
    """The share of the rows of the table that meet an event."""
    rows = people if given is None else people[given]
    share = event[rows.index].mean()
    return f"counted {share:.4f} +- {np.sqrt(share * (1 - share) / len(rows)):.4f}"


rich = people["income"] == ">50K"
print("1.", model.probability(income=">50K"), counted(rich))
print(
    "2.",
    model.probability(income=">50K", given={"education": ["Masters", "Doctorate"]}),
    counted(rich, people["education"].isin(["Masters", "Doctorate"])),
)
busy = (col("hours-per-week") > 60) | (col("occupation") == "Farming-fishing")
print(
    "3.",
    model.probability(busy),
    counted((people["hours-per-week"] > 60) | (people["occupation"] == "Farming-fishing")),
)
idle = ~col("workclass").isin(["Private", "Self-emp-inc"]) & col("age").between(20, 30)
print("4.", model.probability(col("capital-gain") > 5000, given=idle))

law = model.condition(age=35, education="Bachelors", occupation="Sales")
print("5.", law.predict_proba("income"))
print("6.", law.quantile("hours-per-week", [0.05, 0.5, 0.95]), law.mean("hours-per-week"))
print("7.", law.mode().to_dict("records")[0])
print("8.", model.mutual_information("gender", "income"), "nats")
print("9.", model.mutual_information("gender", "income", given="occupation"), "given occupation")

# %% [markdown]
# Combinations of columns go in as they are written. Then draws of everything else decide, and the
# answer has a standard error. All draws of the law meet the event.

# %%
young = col("hours-per-week") > 1.5 * col("age")
found = model.probability(young, given={"income": ">50K"})
print("10.", found, counted(people["hours-per-week"] > 1.5 * people["age"], rich))
rows = model.condition(young, income=">50K").sample(1000)
print((rows["hours-per-week"] > 1.5 * rows["age"]).all())
rows.head()

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
model.plot("age", ax=axes[0])
model.condition(income=">50K").plot("age", ax=axes[1])
model.condition(income=">50K").plot("education", "hours-per-week", ax=axes[2])
axes[0].set_title("age")
axes[1].set_title("age, income above 50K")
axes[2].set_title("hours by education, income above 50K")
figure.tight_layout()
figure.savefig(OUT / "table_laws.png")

# %% [markdown]
# ## Predictions for many rows
#
# A frame is one question a row: what it lacks is asked for. These 3,000 rows were not trained on.
# Predicted probabilities are held against what happened, in ten groups of as many rows.

# %%
probs = model.condition(test.drop(columns="income")).predict_proba("income")[">50K"].to_numpy()
happened = (test["income"] == ">50K").to_numpy()
groups = np.array_split(np.argsort(probs), 10)
hours = model.condition(test.drop(columns="hours-per-week")).interval("hours-per-week", 0.9)
inside = (test["hours-per-week"] >= hours[:, 0]) & (test["hours-per-week"] <= hours[:, 1])
print(f"{np.mean((probs > 0.5) == happened):.3f} of incomes are told right")
print(f"90% intervals of hours hold {inside.mean():.3f} of them")

figure, ax = plt.subplots(figsize=(4, 4))
ax.plot([0, 1], [0, 1], color="0.7")
ax.plot([probs[g].mean() for g in groups], [happened[g].mean() for g in groups], "o-")
ax.set_xlabel("predicted probability of an income above 50K")
ax.set_ylabel("share of rows")
figure.tight_layout()
figure.savefig(OUT / "table_calibration.png")

# %% [markdown]
# ## Gaps
#
# `impute` fills gaps in from what is known of each row, by one value or by draws. Here occupations
# are hidden that are known, and filled in again.

# %%
hidden = test[test["occupation"].notna()].head(1000)
filled = model.impute(hidden.assign(occupation=None))
commonest = train["occupation"].mode()[0]
print(f"filled in right {np.mean(filled['occupation'] == hidden['occupation']):.3f}")
print(f"the commonest is {np.mean(hidden['occupation'] == commonest):.3f}")

# %% [markdown]
# ## Odd rows
#
# `anomaly` says how odd each row is, as a p-value against rows that training did not see, and
# which of its cells are odd given the rest.

# %%
wrong = test.head(3).copy()
wrong["age"] = [17, 45, 88]
wrong["education"] = ["Doctorate", "HS-grad", "Bachelors"]
wrong["marital-status"] = ["Widowed", "Divorced", "Never-married"]
odd = model.anomaly(wrong)
print(odd.p_values.round(3))
odd.cells.round(3)

# %% [markdown]
# ## A question of fairness
#
# How much likelier is a high income for men than for women who are alike in what is known? The
# model answers for each row, with the gender changed. It says what goes with what in this table,
# not what causes it.

# %%
alike = test.drop(columns=["income", "relationship", "marital-status"])
men, women = (
    model.condition(alike.assign(gender=g)).predict_proba("income")[">50K"]
    for g in ("Male", "Female")
)
print(f"as men {men.mean():.3f}, as women {women.mean():.3f}")
difference = (men - women).to_numpy()
error = difference.std() / np.sqrt(len(difference))
print(f"difference {difference.mean():.3f} +- {error:.3f}")

# %% [markdown]
# ## A synthetic table
#
# Draws have the types and labels of the table, and no gaps. Averages and shares agree.

# %%
synthetic = model.sample(len(people))
print(
    pd.DataFrame(
        {"table": people.mean(numeric_only=True), "draws": synthetic.mean(numeric_only=True)}
    )
)
print(pd.crosstab(synthetic["education"], synthetic["income"], normalize="index").round(2).head(6))
print(pd.crosstab(people["education"], people["income"], normalize="index").round(2).head(6))
model.save(OUT / "people")
TableModel.load(OUT / "people")
