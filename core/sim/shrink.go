package sim

// Shrink makes a failing plan smaller as long as the same invariant fails, and answers the
// smallest with its failure.
func Shrink(p Plan, f *Failure, o Options) (Plan, *Failure) {
	o.Trace = nil
	try := func(smaller Plan) bool {
		g := Run(smaller, o)
		if g == nil || g.Invariant != f.Invariant {
			return false
		}
		p, f = smaller, g
		return true
	}
	for size := len(p.Actions) / 2; size > 0; size /= 2 {
		for from := 0; from+size <= len(p.Actions); {
			smaller := p
			smaller.Actions = append(append([]Action{}, p.Actions[:from]...), p.Actions[from+size:]...)
			if !try(smaller) {
				from += size
			}
		}
	}
	for _, simpler := range []func(*Plan){
		func(p *Plan) { p.Network.Twice = 0 },
		func(p *Plan) { p.Network.Late = 0 },
		func(p *Plan) { p.Network.Loss = 0 },
		func(p *Plan) { p.Server.RateLimit = 0 },
		func(p *Plan) { p.Server.LazyMembers = false },
		func(p *Plan) { p.Server.CancelsOnWrite = false },
		func(p *Plan) { p.Server.ActionsInBody = false },
		func(p *Plan) { p.Server.MaxDelay = 0 },
		func(p *Plan) { p.Keys, p.NoOneTimeKeys = false, 0 },
		func(p *Plan) { p.NoOneTimeKeys = 0 },
	} {
		smaller := p
		simpler(&smaller)
		if smaller.Network != p.Network || smaller.Server != p.Server || smaller.Keys != p.Keys || smaller.NoOneTimeKeys != p.NoOneTimeKeys {
			try(smaller)
		}
	}
	return p, f
}
