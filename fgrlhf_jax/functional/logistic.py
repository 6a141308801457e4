"""Logistic regression of shares, with an L1 penalty chosen by cross-validation."""

import itertools

import numpy as np

FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # of the loss against the penalty


def predict_mean(
    rows_RF: np.ndarray, won_R: np.ndarray, weight_R: np.ndarray, eval_NF: np.ndarray
) -> tuple[float, float]:
    """The mean of the predicted shares, and its standard error.

    The error is that by the delta method from the sandwich covariance, plus the spread of the
    predictions. Equal rows are summed, so that the time depends on the number of distinct rows.
    Penalty strengths are compared by exact fits. The final fit is liblinear's, as in alpaca_eval,
    because the digits of its figures depend on where liblinear stops. Raises ImportError without
    scikit-learn.

    Args:
      rows_RF: float[R, F], the features of each observation.
      won_R: float[R], the observed shares, 0 to 1.
      weight_R: float[R], the weights of the observations.
      : float[N, F], where to predict.
    """
    from sklearn.linear_model import LogisticRegression

    features_UF, row_of_R = np.unique(rows_RF, axis=0, return_inverse=True)
    fold_R = np.arange(won_R.size)[::-1] % FOLDS  # as scikit-learn's GroupKFold
    sums_2KU = np.zeros((2, FOLDS, len(features_UF)))  # of weights, and of what of them is won
    for sums_KU, values_R in zip(sums_2KU, (weight_R, weight_R * won_R), strict=True):
        np.add.at(sums_KU, (fold_R, row_of_R.ravel()), values_R)
    losses_C = np.zeros(STRENGTHS.size)
    for k in range(FOLDS):
        theta_F, train_2U = np.zeros(features_UF.shape[1]), np.delete(sums_2KU, k, 1).sum(1)
        for c, strength in enumerate(STRENGTHS):
            theta_F = fit(features_UF, *train_2U, strength, theta_F)
            losses_C[c] += _loss(features_UF @ theta_F, *sums_2KU[:, k]) / (fold_R == k).sum()
    model = LogisticRegression(
        C=STRENGTHS[np.argmin(losses_C)],
        l1_ratio=1.0,
        solver="liblinear",
        fit_intercept=False,
        random_state=123,
    )
    weight_U, won_U = sums_2KU.sum(1)
    weight_2U = np.maximum([won_U, weight_U - won_U], 1e-12)  # liblinear drops rows of weight 0
    labels = np.repeat([1, 0], len(features_UF))
    model.fit(np.tile(features_UF, (2, 1)), labels, sample_weight=weight_2U.ravel())
    p_R, p_N = (model.predict_proba(features)[:, 1] for features in (rows_RF, eval_NF))
    # scikit-learn has no errors of coefficients.
    information = (rows_RF * (weight_R * p_R * (1 - p_R))[:, None]).T @ rows_RF
    score_RF = rows_RF * (weight_R * (won_R - p_R))[:, None]
    change_R = score_RF @ np.linalg.pinv(information) @ (eval_NF.T @ (p_N * (1 - p_N)) / p_N.size)
    return float(p_N.mean()), float(np.sqrt(change_R @ change_R + p_N.var(ddof=1) / p_N.size))


def fit(
    features_UF: np.ndarray,
    weight_U: np.ndarray,
    won_U: np.ndarray,
    strength: float,
    theta_F: np.ndarray,
) -> np.ndarray:
    """Minimises strength · cross-entropy + |θ|₁ by Newton's method, from ``theta_F``.

    Each step minimises the quadratic model plus the penalty exactly, as the best of the minima over
    all sign patterns of the (few) coefficients.
    """
    signs_PF = np.array([*itertools.product((-1.0, 0.0, 1.0), repeat=theta_F.size)])
    free_PF = np.abs(signs_PF)

    def objective(theta: np.ndarray) -> float:
        return strength * _loss(features_UF @ theta, weight_U, won_U) + np.abs(theta).sum()

    for _ in range(50):
        p_U = np.exp(-np.logaddexp(0, -features_UF @ theta_F))
        slope_F = strength * (features_UF.T @ (weight_U * p_U - won_U))
        curvature = (features_UF * (strength * weight_U * p_U * (1 - p_U))[:, None]).T @ features_UF
        inverse = np.linalg.pinv(curvature * free_PF[:, :, None] * free_PF[:, None, :])
        goal_PF = free_PF * (curvature @ theta_F - slope_F - signs_PF)
        theta_PF = np.einsum("pfg,pg->pf", inverse, goal_PF)
        step_PF = theta_PF - theta_F
        change_P = step_PF @ slope_F + np.einsum("pf,fg,pg->p", step_PF, curvature, step_PF) / 2
        change_P += np.abs(theta_PF).sum(1) - np.abs(theta_F).sum()
        step_F, old_value = step_PF[np.argmin(change_P)], objective(theta_F)
        if change_P.min() > -1e-12 * old_value:
            break
        candidates = (theta_F + size * step_F for size in 0.5 ** np.arange(30))
        theta_F = next((theta for theta in candidates if objective(theta) < old_value), theta_F)
    return theta_F


def _loss(logits_U: np.ndarray, weight_U: np.ndarray, won_U: np.ndarray) -> float:
    """Cross-entropy, from the summed weights and the sums of weight times share won."""
    return float(weight_U @ np.logaddexp(0, logits_U) - won_U @ logits_U)
