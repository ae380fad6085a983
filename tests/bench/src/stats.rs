//! Medians and quartiles.

use serde::Serialize;

/// How measurements are spread: the median of all, with a quarter of them below `low`
/// and a quarter above `high`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Of how many.
    pub(crate) n: usize,
}

impl Spread {
    /// Nothing for no measurements.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |share: f64| {
            let place = share * last as f64;
            let below = place.floor() as usize;
            let above = values[(below + 1).min(last)];
            values[below] + (above - values[below]) * place.fract()
        };
        Some(Self {
            median: at(0.5),
            low: at(0.25),
            high: at(0.75),
            n: values.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_values() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (1.75, 2.5, 3.25));
    }

    #[test]
    fn one_value_is_its_own_spread() {
        let spread = Spread::of([7.0]).unwrap();
        assert_eq!(
            (spread.low, spread.median, spread.high, spread.n),
            (7.0, 7.0, 7.0, 1)
        );
        assert_eq!(Spread::of([]), None);
    }
}
