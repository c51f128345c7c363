//! The subscribers of one channel on one shard: a dense list that may change while a pass walks it.
//!
//! Outside a pass the list has no holes. During a pass, who leaves leaves a hole and who joins is added behind the
//! places that the pass visits, so no subscriber is skipped, visited twice, or sent what was published before it came.

use std::rc::Rc;

use crate::conn::{Connection, Membership};

/// The list; each member knows its place in it.
#[derive(Debug)]
pub struct Subscribers<S> {
    channel: u32,
    places: Vec<Option<Rc<Connection<S>>>>,
    holes: usize,
    /// The places that the present pass visits.
    pass: Option<usize>,
}

impl<S> Subscribers<S> {
    /// Nobody, yet, is subscribed to the channel with this index.
    #[must_use]
    pub fn new(channel: u32) -> Self {
        Self { channel, places: Vec::new(), holes: 0, pass: None }
    }

    /// Number of subscribers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len() - self.holes
    }

    /// Whether nobody is subscribed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places that a pass which begins now would visit.
    #[must_use]
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// Who has this place, if it is not a hole.
    #[must_use]
    pub fn at(&self, place: usize) -> Option<&Rc<Connection<S>>> {
        self.places[place].as_ref()
    }

    /// Whether the holder of `position` was subscribed when the present pass began.
    #[must_use]
    pub fn was_there_at_the_start(&self, position: Option<u32>) -> bool {
        position.is_some_and(|position| (position as usize) < self.pass.unwrap_or(self.places.len()))
    }

    /// Adds a subscriber; false if it is one already.
    pub fn join(&mut self, connection: &Rc<Connection<S>>) -> bool {
        connection.catch_up();
        let mut memberships = connection.memberships.borrow_mut();
        if memberships.iter().any(|member| member.channel == self.channel) {
            return false;
        }
        memberships.push(Membership { channel: self.channel, position: self.places.len() as u32 });
        self.places.push(Some(connection.clone()));
        true
    }

    /// Removes a subscriber; false if it is none.
    pub fn leave(&mut self, connection: &Connection<S>) -> bool {
        connection.catch_up();
        let mut memberships = connection.memberships.borrow_mut();
        let Some(index) = memberships.iter().position(|member| member.channel == self.channel) else { return false };
        let position = memberships.swap_remove(index).position as usize;
        drop(memberships);
        if self.pass.is_some() {
            self.places[position] = None;
            self.holes += 1;
        } else {
            self.remove(position);
        }
        true
    }

    /// A pass begins: until [`Subscribers::end_pass`] no place changes its holder.
    pub fn begin_pass(&mut self) {
        debug_assert!(self.pass.is_none() && self.holes == 0);
        self.pass = Some(self.places.len());
    }

    /// The pass is over: holes are filled.
    pub fn end_pass(&mut self) {
        self.pass = None;
        let mut place = self.places.len();
        while self.holes > 0 {
            place -= 1;
            if self.places[place].is_none() {
                self.remove(place);
                self.holes -= 1;
            }
        }
    }

    /// Fills a place with the last one's holder. Memory beyond four times the need is given back.
    fn remove(&mut self, place: usize) {
        self.places.swap_remove(place);
        if let Some(Some(moved)) = self.places.get(place) {
            let mut memberships = moved.memberships.borrow_mut();
            let member = memberships.iter_mut().find(|member| member.channel == self.channel);
            member.expect("who has a place knows it").position = place as u32;
        }
        if self.places.capacity() > 64 && self.places.len() < self.places.capacity() / 4 {
            self.places.shrink_to(self.places.capacity() / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Load;
    use crate::conn::{Role, Socket};
    use crate::registry::ConnId;
    use std::io::{self, IoSlice};

    struct Nowhere;

    impl Socket for Nowhere {
        fn send(&self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn send_vectored(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn receive(&self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn shutdown_write(&self) {}
    }

    fn connections(number: u64) -> Vec<Rc<Connection<Nowhere>>> {
        (0..number)
            .map(|id| Rc::new(Connection::new(ConnId(id), id as u32, Role::Events, Nowhere, Load::default().permit())))
            .collect()
    }

    fn ids(list: &Subscribers<Nowhere>) -> Vec<Option<u64>> {
        let ids = list.places.iter().map(|place| place.as_ref().map(|connection| connection.id.0)).collect();
        for (place, holder) in list.places.iter().enumerate() {
            assert!(holder.as_ref().is_none_or(|holder| holder.position(7) == Some(place as u32)));
        }
        ids
    }

    #[test]
    fn the_list_is_dense_between_passes() {
        let all = connections(4);
        let mut list = Subscribers::new(7);
        assert!(all.iter().all(|connection| list.join(connection)));
        assert!(!list.join(&all[1]), "once is enough");
        assert!(list.leave(&all[0]) && !list.leave(&all[0]));
        assert_eq!(ids(&list), [Some(3), Some(1), Some(2)]);
        assert!(list.leave(&all[2]));
        assert_eq!((ids(&list), list.len()), (vec![Some(3), Some(1)], 2));
    }

    #[test]
    fn a_pass_sees_no_place_change() {
        let all = connections(6);
        let mut list = Subscribers::new(7);
        all[..4].iter().for_each(|connection| assert!(list.join(connection)));
        list.begin_pass();
        list.leave(&all[0]);
        list.leave(&all[3]);
        list.join(&all[4]);
        list.join(&all[0]);
        list.join(&all[5]);
        list.leave(&all[5]);
        assert_eq!(ids(&list), [None, Some(1), Some(2), None, Some(4), Some(0), None]);
        assert_eq!(list.len(), 4);
        let there = |connection: &Rc<Connection<Nowhere>>| list.was_there_at_the_start(connection.position(7));
        assert!(there(&all[1]) && !there(&all[0]) && !there(&all[3]) && !there(&all[4]));
        list.end_pass();
        let mut left = ids(&list);
        left.sort();
        assert_eq!(left, [Some(0), Some(1), Some(2), Some(4)]);
        assert_eq!(list.holes, 0);
    }

    #[test]
    fn memory_is_given_back() {
        let all = connections(1000);
        let mut list = Subscribers::new(7);
        all.iter().for_each(|connection| assert!(list.join(connection)));
        all.iter().for_each(|connection| assert!(list.leave(connection)));
        assert!(list.places.capacity() <= 64, "{}", list.places.capacity());
    }
}
