//! Slopes that a few wild points do not bend: Theil (1950) and Sen (1968), and the test of Mann and Kendall
//! for whether there is one at all.

/// Median of the slopes between all pairs, and where eight tenths of them lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Slope {
    /// 10 % of the slopes are smaller.
    pub(super) low: f64,
    pub(super) median: f64,
    /// 10 % are larger.
    pub(super) high: f64,
    /// Share of pairs that rise, of those that rise or fall; 0.5 where none does.
    pub(super) rising: f64,
}

/// The slope of points (time, value), by unit of time; `None` of fewer than three.
pub(super) fn theil_sen(points: &[(f64, f64)]) -> Option<Slope> {
    of_pairs(points, |time| time != 0.0)
}

/// The same from pairs only that lie whole seasons of so many units apart (Hirsch, Slack and Smith 1982).
pub(super) fn theil_sen_seasonal(points: &[(f64, f64)], season: usize) -> Option<Slope> {
    of_pairs(points, |time| time != 0.0 && time % season as f64 == 0.0)
}

fn of_pairs(points: &[(f64, f64)], counts: impl Fn(f64) -> bool) -> Option<Slope> {
    if points.len() < 3 {
        return None;
    }
    let mut slopes = Vec::with_capacity(points.len() * (points.len() - 1) / 2);
    for (at, one) in points.iter().enumerate() {
        for other in &points[at + 1..] {
            let time = other.0 - one.0;
            if counts(time) {
                slopes.push((other.1 - one.1) / time);
            }
        }
    }
    if slopes.is_empty() {
        return None;
    }
    let count = |of: fn(f64) -> bool| slopes.iter().filter(|slope| of(**slope)).count() as f64;
    let (up, down) = (count(|slope| slope > 0.0), count(|slope| slope < 0.0));
    let rising = if up + down > 0.0 {
        up / (up + down)
    } else {
        0.5
    };
    let mut rank = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a length"
        )]
        let at = ((slopes.len() - 1) as f64 * share).round() as usize;
        *slopes.select_nth_unstable_by(at, f64::total_cmp).1
    };
    Some(Slope {
        low: rank(0.1),
        median: rank(0.5),
        high: rank(0.9),
        rising,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_wild_points_do_not_bend_it() {
        let mut points: Vec<(f64, f64)> = (0..20)
            .map(|t| (f64::from(t), 3.0 * f64::from(t)))
            .collect();
        let clean = theil_sen(&points).expect("enough points");
        assert_eq!((clean.low, clean.median, clean.high), (3.0, 3.0, 3.0));
        points[4].1 = 900.0;
        points[11].1 = -900.0;
        let wild = theil_sen(&points).expect("enough points");
        assert_eq!(wild.median, 3.0);
        assert!(wild.low < 3.0 && wild.rising > 0.7);
    }

    #[test]
    fn a_season_is_no_trend() {
        // Rises over each season of four and falls back; by a hundredth from one to the next.
        let points: Vec<(f64, f64)> = (0..24_i32)
            .map(|t| (f64::from(t), f64::from(t % 4) + f64::from(t / 4) * 0.01))
            .collect();
        let slope = theil_sen_seasonal(&points, 4).expect("enough points");
        assert!(
            (slope.median - 0.0025).abs() < 1e-9 && slope.rising == 1.0,
            "{slope:?}"
        );
        assert!(theil_sen(&points).expect("enough points").rising < 0.8);
    }

    #[test]
    fn what_is_flat_neither_rises_nor_falls() {
        let flat: Vec<(f64, f64)> = (0..9).map(|t| (f64::from(t), 0.5)).collect();
        let slope = theil_sen(&flat).expect("enough points");
        assert_eq!((slope.median, slope.rising), (0.0, 0.5));
        assert_eq!(theil_sen(&flat[..2]), None);
        assert_eq!(theil_sen(&[(1.0, 1.0); 5]), None, "one moment");
    }
}
