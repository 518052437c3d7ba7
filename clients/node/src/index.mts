// The same code as for require, so that there is one Locker class, and one set of error classes.
export * from './index.js'
