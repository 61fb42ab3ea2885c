ALTER TABLE products ADD COLUMN nothing_found boolean NOT NULL DEFAULT false;
ALTER TABLE products DROP CONSTRAINT products_market_provider;
ALTER TABLE products ADD CONSTRAINT products_market_provider CHECK (market_provider IN ('price_book', 'none', 'http'));

-- One offer may be in the book in several currencies. The new index allows more than the old one.
CREATE UNIQUE INDEX price_book_entries_offers
    ON price_book_entries (owner, brand_key, model_key, name_key, marketplace_key, currency);
DROP INDEX price_book_entries_offer;
ALTER INDEX price_book_entries_offers RENAME TO price_book_entries_offer;
