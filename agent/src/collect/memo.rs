//! Remembers what was decided about the names a file prints. Kernels print the same names in the same order,
//! so the decision of the round before is found by its place, with one comparison and no allocation.

/// Most places that are remembered; behind them each name is decided anew.
const MAX_PLACES: usize = 4096;

/// Decisions by place.
#[derive(Debug)]
pub struct Memo<T> {
    places: Vec<Option<(Vec<u8>, T)>>,
}

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self { places: Vec::new() }
    }
}

impl<T: Copy> Memo<T> {
    /// What was decided about this name, which stands at this place; `decide` is asked if it is new there.
    pub fn get(&mut self, place: usize, name: &[u8], decide: impl FnOnce(&[u8]) -> T) -> T {
        if let Some(Some((known, decision))) = self.places.get(place)
            && known == name
        {
            return *decision;
        }
        let decision = decide(name);
        if place < MAX_PLACES {
            if self.places.len() <= place {
                self.places.resize_with(place + 1, || None);
            }
            self.places[place] = Some((name.to_owned(), decision));
        }
        decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_decided_once_while_it_stays_in_its_place() {
        let mut memo = Memo::default();
        let mut asked = 0;
        let mut get = |place, name: &str| {
            memo.get(place, name.as_bytes(), |name| {
                asked += 1;
                name.len()
            })
        };
        assert_eq!((get(0, "a"), get(7, "bb"), get(0, "a")), (1, 2, 1));
        assert_eq!((get(0, "bb"), get(7, "bb")), (2, 2));
        assert_eq!((get(MAX_PLACES, "ccc"), get(MAX_PLACES, "ccc")), (3, 3));
        assert_eq!(asked, 5);
        assert!(memo.places.len() <= MAX_PLACES);
    }
}
